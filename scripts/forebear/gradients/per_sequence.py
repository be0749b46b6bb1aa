"""Gradients of single sequences at the tracked blocks, in slices and chunks that memory holds."""

from collections.abc import Iterator

import torch
from torch import Tensor

from forebear.gradients.blocks import Block
from forebear.gradients.capture import Captured

CHUNK_ELEMENTS = 1 << 20  # of gradients formed at once: 4 MiB in float32


def gradients_in_chunks(g: Tensor, a: Tensor) -> Iterator[Tensor]:
    """Σ_t g[b, t] a[b, t]ᵀ of g [B, T, O] and a [B, T, I], a few sequences at a time: [b, O, I].

    A chunk is overwritten by the next, so that it stays in the processor's cache.
    """
    shape = (g.shape[2], a.shape[2])
    chunk = max(1, CHUNK_ELEMENTS // (shape[0] * shape[1]))
    buffer = g.new_empty(chunk, *shape)
    for g_part, a_part in zip(g.split(chunk), a.split(chunk), strict=True):
        yield torch.bmm(g_part.transpose(1, 2), a_part, out=buffer[: len(g_part)])


def summed_squares(g: Tensor, a: Tensor) -> Tensor:
    """Σ_b (Σ_t g[b, t] a[b, t]ᵀ)² elementwise, [O, I], for g [B, T, O] and a [B, T, I]."""
    total = g.new_zeros(g.shape[2], a.shape[2])
    for gradients in gradients_in_chunks(g, a):
        total += gradients.square_().sum(0)
    return total


SLICE_ELEMENTS = 1 << 21  # of document gradients formed at once: 8 MiB in float32


def gradient_slices(captured: Captured, block: Block) -> Iterator[tuple[slice, Tensor]]:
    """The gradients of all sequences, a few output rows at a time: (columns of O·I, [B, those columns]).

    A slice is overwritten by the next, so that it stays in the processor's cache.
    """
    a, g = captured.block(block)
    sequences, width = a.shape[0], a.shape[2]
    rows = min(block.shape[0], max(1, SLICE_ELEMENTS // (sequences * width)))
    buffer = a.new_empty(sequences * rows * width)
    for first in range(0, block.shape[0], rows):
        part = g[..., first : first + rows].transpose(1, 2)
        gradients = buffer[: sequences * part.shape[1] * width].view(sequences, part.shape[1], width)
        torch.bmm(part, a, out=gradients)
        yield slice(first * width, (first + part.shape[1]) * width), gradients.flatten(1)
