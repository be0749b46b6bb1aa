"""How much a document speaks for itself: gᵀ H̃⁻¹ g of its own loss gradient.

A document with a large gradient is a proponent or an opponent of every query. Divided by
the root of its self-influence, a score says how much of that is about the query: RelatIF
(Barshan et al. 2020, arXiv 2003.11630).
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.data.batches import batch_indices
from forebear.data.sequences import Example
from forebear.factors.fit import beside_the_model
from forebear.factors.kronecker import rotated
from forebear.gradients.blocks import Block
from forebear.gradients.capture import captured_batches, working_dtype
from forebear.gradients.per_sequence import gradients_in_chunks
from forebear.queries.chain import DampedInverse


def self_influence(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    inverse: DampedInverse,
    batch_tokens: int,
    documents: Sequence[int] | None = None,
) -> Tensor:
    """∇ℓ(z)ᵀ H̃⁻¹ ∇ℓ(z) of every sequence that is wanted, [n], with the labels of the data; one pass.

    Args:
        documents: indices, ascending, of these; all by default.
        inverse: of the stage whose documents and model these are.
    """
    functions = inverse.functions(blocks)
    activation, gradient = beside_the_model(inverse.basis, model, blocks)
    result = torch.zeros(len(examples), dtype=working_dtype(model))
    wanted = batch_indices(examples, batch_tokens, documents)
    for batch, captured in captured_batches(model, blocks, examples, wanted, "self-influence"):
        for block in blocks:
            a, g = captured.block(block)
            chunks = gradients_in_chunks(rotated(g, gradient[block.name]), rotated(a, activation[block.module]))
            products = [chunk.square_().flatten(1) @ functions[block.name].to(g.device).flatten() for chunk in chunks]
            result[batch.indices] += torch.cat(products).cpu()
    return result[sorted(chain.from_iterable(wanted))]


def normalised(scores: np.ndarray, influence: np.ndarray) -> np.ndarray:
    """RelatIF: scores [N, Q] over the root of the documents' self-influence [N], in the scores' precision."""
    return scores / np.sqrt(influence)[:, None].astype(scores.dtype)
