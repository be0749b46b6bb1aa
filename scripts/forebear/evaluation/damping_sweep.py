"""Many dampings and α of a chain at once, judged by subsets of the documents.

A prediction for a subset is the sum of its documents' scores, and a score is linear in the
document's gradient. So the gradients of each subset are summed once, in one pass, and each
setting costs products with as many vectors as there are subsets, not documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.data.sequences import Example
from forebear.factors.eigenvalue_functions import Damping
from forebear.gradients.blocks import Block, device_of
from forebear.gradients.capture import captured_batches, working_dtype
from forebear.gradients.outer_products import Matrices
from forebear.gradients.per_sequence import gradient_slices
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.runtime.progress import progress


@dataclass(frozen=True)
class Grid:
    """Values tried; fields as the config's `sweep`."""

    alpha: Sequence[float]  # α of the stages after the documents'
    later: Sequence[float]  # ρ of those stages
    own: Sequence[float]  # ρ of the documents' stage

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.alpha), len(self.later), len(self.own)


def subset_gradients(
    model: PreTrainedModel, blocks: Sequence[Block], examples: Sequence[Example], subsets: np.ndarray, batch_tokens: int
) -> dict[str, Tensor]:
    """Σ_{z in S_j} ∇ℓ(z) of every subset: subsets [S, N] bool → block → [S, O, I]; one pass."""
    masks = torch.from_numpy(subsets).to(working_dtype(model))
    sums = {b.name: masks.new_zeros(len(masks), *b.shape, device=device_of(model, b.module)) for b in blocks}
    for batch, captured in captured_batches(model, blocks, examples, batch_tokens, "subset gradients"):
        for block in blocks:
            total = sums[block.name].flatten(1)
            for part, gradients in gradient_slices(captured, block):
                total[:, part].addmm_(masks[:, batch.indices].to(total.device), gradients)
    return {block: total.cpu() for block, total in sums.items()}


def sweep(
    queries: Mapping[str, Matrices],
    subsets: Mapping[str, Tensor],
    blocks: Sequence[Block],
    own: DampedInverse,
    later: Sequence[DampedInverse],
    grid: Grid,
) -> Tensor:
    """Predictions Σ_{z in S_j} score(z, x) for every setting, [A, L, W, S, Q].

    Args:
        queries: block → ∇m [Q, O, I].
        subsets: block → summed gradients [S, O, I] of the documents at their own stage's model.
        own: the inverse of the documents' stage.
        later: those of the stages after it, the last first.
    """
    number = len(next(iter(queries.values())))
    predictions = torch.zeros(*grid.shape, len(next(iter(subsets.values()))), number)
    rotated = _in_eigenbasis(subsets, blocks, own)
    functions = [replace(own, damping=Damping(relative=rho)).functions(blocks) for rho in grid.own]
    settings = list(product(enumerate(grid.alpha), enumerate(grid.later)))
    for (a, alpha), (k, rho) in progress(settings, "sweep", "setting"):
        changed = {"damping": Damping(relative=rho), "pull": alpha, "scale": alpha}
        inverses = [replace(inverse, **changed) for inverse in later]
        vectors = _in_eigenbasis(apply_chain(queries, blocks, inverses), blocks, own)
        for w, values in enumerate(functions):
            for block in blocks:
                left = (rotated[block.name] * values[block.name]).flatten(1)
                predictions[a, k, w] += (left @ vectors[block.name].flatten(1).T).cpu()
    return predictions


def _in_eigenbasis(vectors: Mapping[str, Tensor], blocks: Sequence[Block], inverse: DampedInverse) -> dict[str, Tensor]:
    """Q_Sᵀ V Q_A of every V, block → [n, O, I]."""
    basis = inverse.basis
    return {
        block.name: basis.gradient[block.name].T @ (vectors[block.name] @ basis.activation[block.module])
        for block in blocks
    }
