"""Where tensors lie: rows that begin at aligned addresses.

A bias makes the width of a block odd, and matrix products over rows that begin at odd
addresses take up to twice as long (129 columns: 10 against 5 ms for 20,000 rows; see
tests/benchmarks).
"""

from torch import Tensor

ALIGNMENT = 16  # elements: a cache line of float32


def aligned_empty(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of this shape, with the type and device of `like`, whose rows are aligned."""
    width = -(-shape[-1] // ALIGNMENT) * ALIGNMENT
    return like.new_empty(*shape[:-1], width)[..., : shape[-1]]


def aligned(tensor: Tensor) -> Tensor:
    """A copy whose rows are aligned."""
    return aligned_empty(tensor, *tensor.shape).copy_(tensor)
