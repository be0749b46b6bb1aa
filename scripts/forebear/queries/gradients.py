"""Gradients of queries: of every query's measurement, at the last model."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.data.batches import batch_indices
from forebear.data.sequences import Example
from forebear.gradients.blocks import Block
from forebear.gradients.capture import captured_batches, working_dtype
from forebear.gradients.outer_products import OuterProducts


def stream_query_gradients(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    batch_tokens: int,
    write: Callable[[str, str, Tensor, Tensor], None],
    queries: Sequence[int] | None = None,
) -> Tensor:
    """The losses m of all queries, [Q]; what their gradients are made of goes to `write`.

    Args:
        queries: indices, ascending, of those that are wanted; the others' losses are NaN. All by default.
        write: called with ("activations", linear map, increasing indices [B] of queries,
            a [B, T, I]) and ("gradients", block, indices, g [B, T, O]), T being that of the longest of
            these (n times that, where a map is used n times). Of an expert T is as many tokens as one
            of them sends there.
    """
    losses = torch.full((len(examples),), torch.nan, dtype=working_dtype(model))
    wanted = batch_indices(examples, batch_tokens, queries)
    for batch, captured in captured_batches(model, blocks, examples, wanted, "query gradients"):
        indices, order = batch.indices.sort()
        losses[indices] = captured.losses.cpu()[order]
        vectors = {("activations", module): a for module, a in captured.activations.items()}
        vectors |= {("gradients", block.name): captured.block(block)[1] for block in blocks}
        for (kind, name), values in vectors.items():
            write(kind, name, indices, values.cpu()[order])
    return losses


def query_gradients(
    model: PreTrainedModel, blocks: Sequence[Block], examples: Sequence[Example], batch_tokens: int
) -> tuple[dict[str, OuterProducts], Tensor]:
    """∇m of every query, block → [Q, O, I], and its loss m [Q], all in memory."""
    parts: dict[tuple[str, str], Tensor] = {}

    def write(kind: str, name: str, indices: Tensor, values: Tensor) -> None:
        part, tokens = parts.get((kind, name)), values.shape[1]
        if part is None or part.shape[1] < tokens:  # a later query may have more
            grown = values.new_zeros(len(examples), *values.shape[1:])
            if part is not None:
                grown[:, : part.shape[1]] = part
            parts[kind, name] = part = grown
        part[indices, :tokens] = values

    losses = stream_query_gradients(model, blocks, examples, batch_tokens, write)
    gradients = {b.name: OuterProducts(parts["gradients", b.name], parts["activations", b.module]) for b in blocks}
    return gradients, losses
