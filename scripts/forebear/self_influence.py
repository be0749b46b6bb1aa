"""How much a document speaks for itself: gᵀ H̃⁻¹ g of its own loss gradient.

A document with a large gradient is a proponent or an opponent of every query. Divided by
the root of its self-influence, a score says how much of that is about the query: RelatIF
(Barshan et al. 2020, arXiv 2003.11630).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.blocks import Block
from forebear.capture import capture
from forebear.chain import Curvature, inverse_functions
from forebear.datasets import Example, batches
from forebear.factors import gradients_in_chunks, rotated
from forebear.memory import aligned
from forebear.progress import progress


def self_influence(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    curvature: Curvature,
    batch_tokens: int,
) -> Tensor:
    """∇ℓ(z)ᵀ H̃⁻¹ ∇ℓ(z) of every sequence, [N], with the labels of the data; one pass.

    Args:
        curvature: of the stage whose documents and model these are.
    """
    functions = inverse_functions(curvature)
    activation = {module: aligned(vectors.to(model.dtype)) for module, vectors in curvature.basis.activation.items()}
    gradient = {block: aligned(vectors.to(model.dtype)) for block, vectors in curvature.basis.gradient.items()}
    result = torch.zeros(len(examples), dtype=model.dtype)
    for batch in progress(batches(examples, batch_tokens), "self-influence", "batch"):
        captured = capture(model, blocks, batch)
        for block in blocks:
            a, g = captured.block(block)
            chunks = gradients_in_chunks(rotated(g, gradient[block.name]), rotated(a, activation[block.module]))
            products = [chunk.square_().flatten(1) @ functions[block.name].flatten() for chunk in chunks]
            result[batch.indices] += torch.cat(products).cpu()
    return result
