"""The files of query gradients, raw and preconditioned, and the queries' losses.

Preconditioned ones are `/{block}/columns` [Q, O, I]; compressed ones `/{block}/left` [Q, r, O] and
`/{block}/right` [Q, r, I], with `/{block}/residuals` [Q], what is lost of the block. Raw ones are not formed: they are `/{block}/gradients` [Q, T, O] and
`/{linear map}/activations` [Q, T, I]. They may be larger than memory, so they are written and
read in parts.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from forebear.blocks import Block
from forebear.outer import Matrices, OuterProducts, in_memory
from forebear.store import (
    SCORE_UNITS,
    Attributes,
    create,
    datasets_of,
    open_to_stay,
    read_attributes,
    write_tensor,
)


@dataclass(frozen=True)
class QueryColumns:
    """Query gradients, raw or preconditioned, with what is needed to use them without a model."""

    columns: dict[str, h5py.Dataset | OuterProducts]  # block → [Q, O, I], in the file
    losses: Tensor  # [Q]
    places: np.ndarray  # [Q] which of the study's queries these are
    blocks: list[Block]
    attributes: dict

    @property
    def rank(self) -> int | None:
        """The most outer products that a column of a block is the sum of; None for matrices."""
        unformed = [part.left.shape[1] for part in self.columns.values() if isinstance(part, OuterProducts)]
        return max(unformed, default=None)

    def of(self, blocks: Sequence[Block], queries: slice = slice(None)) -> dict[str, Matrices]:
        """Of some blocks and queries, in memory."""
        return {block.name: in_memory(self.columns[block.name], queries) for block in blocks}


class QueryColumnsWriter:
    """Takes columns as they are computed, and at last what it took."""

    def __init__(self, file: h5py.File, queries: int):
        self._file, self._queries = file, queries

    def write(self, block: str, queries: slice | Tensor, columns: Tensor) -> None:
        """Columns [q, O, I] of the queries of a slice, or at increasing places [q]."""
        self.write_part("columns", block, queries, columns)

    def write_part(self, kind: str, name: str, queries: slice | Tensor, vectors: Tensor) -> None:
        """What raw gradients are made of, as `scoring.stream_query_gradients` hands it on."""
        write_tensor(self._file, vectors, name, kind, queries, self._queries)

    def note(self, attributes: Attributes) -> None:
        self._file.attrs.update(attributes)


@contextmanager
def create_query_columns(
    path: str | Path,
    losses: Tensor,
    blocks: Sequence[Block],
    attributes: Attributes,
    places: Tensor | None = None,
) -> Iterator[QueryColumnsWriter]:
    """A file of columns, which appears when the block ends.

    Args:
        losses: [Q], read when the block ends.
        places: [Q], which of the study's queries these are; all of them by default.
    """
    described = json.dumps([{**asdict(block), "rows": [block.rows.start, block.rows.stop]} for block in blocks])
    with create(path, "query columns", {**attributes, **SCORE_UNITS, "blocks": described}) as file:
        yield QueryColumnsWriter(file, len(losses))
        file["losses"] = losses.numpy()
        file["places"] = np.arange(len(losses)) if places is None else places.numpy()


def read_query_columns(path: str | Path, expected: Attributes | None = None) -> QueryColumns:
    """The columns stay in the file, which stays open."""
    file = open_to_stay(path, "query columns", expected)
    described = json.loads(file.attrs["blocks"])
    blocks = [Block(**{**b, "rows": slice(*b["rows"]), "shape": tuple(b["shape"])}) for b in described]
    losses, places = torch.from_numpy(file["losses"][()]), file["places"][()]
    if f"{blocks[0].name}/gradients" in file:
        left, right = datasets_of(file, "gradients"), datasets_of(file, "activations")
        columns = {block.name: OuterProducts(left[block.name], right[block.module]) for block in blocks}
    elif f"{blocks[0].name}/left" in file:
        left, right = datasets_of(file, "left"), datasets_of(file, "right")
        columns = {block.name: OuterProducts(left[block.name], right[block.name]) for block in blocks}
    else:
        columns = datasets_of(file, "columns")
    return QueryColumns(columns, losses, places, blocks, dict(file.attrs))


def solves_of(path: str | Path) -> list[dict]:
    """Of queries that a solver made: each stage's `sequences`, and every query's `iterations` and `residuals`."""
    return json.loads(read_attributes(path, "query columns")["solves"])
