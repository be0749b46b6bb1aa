"""The chain of stages: which inverses a query meets, with α and damping.

    score(z, x) = ∇m(θ_n; x)ᵀ [α_n H̃_n⁻¹] ··· [α_{s+1} H̃_{s+1}⁻¹] H̃_s⁻¹ ∇ℓ_s(z; θ_s)

with H̃_1 = H_1 + λ_1 and H̃_s = H_s + α_s + λ_s (Bao et al. 2025, arXiv 2505.05017,
equation 12, with the α that the paper drops). The query is preconditioned once, from the
last stage to the documents'; the documents never are. All inverses are symmetric, so the
order in which they meet ∇m is the order of the product read from the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forebear.errors import shortened
from forebear.factors.eigenvalue_functions import Damping, damped_inverse, remaining, unrolled_inverse
from forebear.factors.kronecker import Eigenbasis, precondition
from forebear.gradients.blocks import Block
from forebear.gradients.outer_products import Matrices, formed


@dataclass(frozen=True)
class Curvature:
    """One stage's curvature, ready to be inverted.

    `pull` is α_s, which is part of H̃_s for every stage but the first (0 there).
    """

    basis: Eigenbasis
    eigenvalues: Mapping[str, Tensor]  # block → Λ [O, I], never written to
    damping: Damping
    pull: float = 0.0


def is_empty(curvature: Curvature, eigenvalues: Tensor) -> bool:
    """Whether a block has neither eigenvalues nor anything that is added to them.

    Where all its gradients are zero (a map that is not used, an expert that no document reached, the
    layers before an output layer of zeros) so is Λ, and with it a relative λ.
    """
    return curvature.pull + curvature.damping.of(eigenvalues) == 0 and not eigenvalues.any()


def inverse_functions(curvature: Curvature, blocks: Sequence[Block], scale: float = 1.0) -> dict[str, Tensor]:
    """block → scale / (Λ + α + λ), [O, I], of those blocks that have eigenvalues.

    It is 0 where there is nothing to invert, as the pseudo-inverse is: no document has a gradient
    there that it could meet. The names of such blocks are printed.
    """
    functions, empty = {}, []
    for block in blocks:
        if block.name not in curvature.eigenvalues:
            continue
        eigenvalues = curvature.eigenvalues[block.name]
        if is_empty(curvature, eigenvalues):
            empty.append(block.name)
            functions[block.name] = torch.zeros_like(eigenvalues)
        else:
            added = curvature.pull + curvature.damping.of(eigenvalues)
            functions[block.name] = scale * damped_inverse(eigenvalues, added)
    if empty:
        print(f"no curvature, so no part in the scores: {len(empty)} of {len(functions)} blocks: {shortened(empty)}")
    return functions


def precondition_chain(
    gradients: Mapping[str, Matrices],
    blocks: Sequence[Block],
    links: Sequence[tuple[Curvature, float]],
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Apply [scale · H̃⁻¹] of every link to the query gradients, the first link first.

    Args:
        gradients: block → ∇m [Q, O, I].
        links: (curvature, scale); the scale is α_s for the stages after the documents'
            and 1 for the documents' own.
        device: where the products are computed.

    Returns:
        block → [Q, O, I], in the parameter basis.
    """
    vectors = dict(gradients)
    for curvature, scale in links:
        vectors = precondition(vectors, blocks, curvature.basis, inverse_functions(curvature, blocks, scale), device)
    return {block: formed(matrices) for block, matrices in vectors.items()}


@dataclass(frozen=True)
class Segment:
    """One stage's training as SOURCE sees it: gradient descent for `time` on a quadratic loss."""

    basis: Eigenbasis
    eigenvalues: Mapping[str, Tensor]  # block → Λ [O, I]
    time: float  # η̄K: mean learning rate times steps
    later: bool  # after the documents' stage


def unroll_chain(
    gradients: Mapping[str, Matrices],
    blocks: Sequence[Block],
    segments: Sequence[Segment],
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Query gradients for SOURCE, with one segment a stage (Bae et al. 2024, arXiv 2405.12186, section 3).

        score(z, x) = ∇m(θ_n; x)ᵀ e^(−t_n H_n) ··· e^(−t_{s+1} H_{s+1}) (1 − e^(−t_s H_s)) H_s⁻¹ ∇ℓ_s(z; θ_s)

    In place of optima and pulls: what a document did to θ_s by the end of its stage, and
    what the later stages have left of it. Curvatures are taken where the stages ended.

    Args:
        gradients: block → ∇m [Q, O, I].
        segments: from the last stage to the documents'.
        device: where the products are computed.

    Returns:
        block → [Q, O, I], in the parameter basis.
    """
    vectors = dict(gradients)
    for segment in segments:
        function = remaining if segment.later else unrolled_inverse
        values = {b.name: segment.eigenvalues[b.name] for b in blocks if b.name in segment.eigenvalues}
        functions = {block: function(value, segment.time) for block, value in values.items()}
        vectors = precondition(vectors, blocks, segment.basis, functions, device)
    return {block: formed(matrices) for block, matrices in vectors.items()}


def training_time(record: Mapping[str, float], adam: bool = True) -> float:
    """t of a stage from its training record: η̄ K, mean learning rate times steps.

    Gradient flow for t moves the parameters by t times the gradient. AdamW divides the
    gradient by √v̂ before it moves, so with `adam` the time is divided by its mean.
    """
    time = record["mean_learning_rate"] * record["steps"]
    return time / record["adam_scale"] if adam else time


def default_pull(record: Mapping[str, float]) -> float:
    """α of a stage from its training record: 1/t, with AdamW's t.

    A proximity term of this strength matches gradient flow for t to first order (Bae et al.
    2024, arXiv 2405.12186, section 3).
    """
    return 1 / training_time(record)
