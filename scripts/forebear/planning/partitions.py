"""Parts of a computation that memory holds one at a time: some blocks, and some of the queries."""

from collections.abc import Sequence
from dataclasses import dataclass

from forebear.gradients.blocks import Block


@dataclass(frozen=True)
class Partition:
    """Consecutive blocks, all of every linear map, and consecutive queries of every set of columns."""

    blocks: tuple[Block, ...]
    first: int = 0  # of the queries
    stop: int | None = None  # one after the last; None for all that there are

    @property
    def queries(self) -> slice:
        return slice(self.first, self.stop)


def by_map(blocks: Sequence[Block]) -> list[tuple[Block, ...]]:
    """The blocks by linear map, in order; they share its activations."""
    maps: dict[str, list[Block]] = {}
    for block in blocks:
        maps.setdefault(block.module, []).append(block)
    return [tuple(part) for part in maps.values()]


def joined(maps: Sequence[Sequence[Block]]) -> tuple[Block, ...]:
    return tuple(block for part in maps for block in part)
