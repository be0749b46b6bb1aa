"""What a job may take and what its model takes: bytes of memory, and the model's shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from forebear.data.token_files import lengths_of
from forebear.gradients.blocks import Block
from forebear.gradients.point import Point
from forebear.runtime.memory import PROCESS_BYTES

FLOAT = 4  # bytes: whatever is computed from a pass is in float32
GPU_FRACTION = 0.9  # of a GPU's free memory that is planned with; the rest is lost between allocations


@dataclass(frozen=True)
class Shape:
    """Of a model and of what is run through it."""

    blocks: tuple[Block, ...]  # all that are tracked
    parameters: int  # that a token is multiplied with: of experts, those that it is expected to be routed to
    model_bytes: int
    width: int  # of the logits
    tokens: float  # of a document, on average
    longest: int  # tokens of the longest


@dataclass(frozen=True)
class Budget:
    """Bytes that a job may take, and those of them that are taken by something else than it plans."""

    total: int
    taken: int
    gpus: int = 0

    @property
    def room(self) -> int:
        return self.total - self.taken


def shape_of(model: PreTrainedModel, blocks: Sequence[Block], lengths: Sequence[int]) -> Shape:
    """The shape of a model, whose weights may lie on the device `meta`, and of documents of these lengths in tokens."""
    sizes = {id(p): p.numel() for p in model.parameters()}
    head = model.get_output_embeddings() or getattr(model, "score", None)
    looked_up = model.get_input_embeddings().weight
    multiplied = sum(sizes.values()) - (0 if head is None or head.weight is looked_up else looked_up.numel())
    multiplied -= sum((1 - block.seen) * block.shape[0] * block.shape[1] for block in blocks)
    bytes_of_model = sum(sizes.values()) * model.dtype.itemsize
    width = looked_up.shape[0] if head is None else head.weight.shape[0]
    return Shape(tuple(blocks), int(multiplied), bytes_of_model, width, sum(lengths) / len(lengths), max(lengths))


def shape_at(point: Point) -> Shape:
    """The shape of a point's model and of its sequences."""
    return shape_of(point.model, point.blocks, lengths_of(point.examples).tolist())


def budget_of(model_bytes: int, memory_mb: float, gpus: int) -> Budget:
    """Of a job on this machine: what it asked the scheduler for, or what is free on its GPUs beside the model.

    Args:
        model_bytes: of the model that has been loaded, 0 if there is none.
    """
    if gpus:
        free = sum(torch.cuda.mem_get_info(k)[0] for k in range(gpus))
        return Budget(model_bytes + int(GPU_FRACTION * free), model_bytes, gpus)
    return Budget(int(memory_mb * 2**20), PROCESS_BYTES + model_bytes)
