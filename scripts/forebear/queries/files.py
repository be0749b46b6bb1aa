"""The files of query gradients, raw and preconditioned, and the queries' losses.

Preconditioned ones are `/{block}/columns` [Q, O, I]; compressed ones `/{block}/left` [Q, r, O] and
`/{block}/right` [Q, r, I], with `/{block}/residuals` [Q], what is lost of the block. Those of a
solver have `/{point}/iterations` and `/{point}/residuals` [Q] of every inverse. Raw ones are not
formed: they are `/{block}/gradients` [Q, T, O] and `/{linear map}/activations` [Q, T, I], where T of
an expert's map is the most tokens that a query sends there. They may be larger than memory, so they
are written and read in parts.

A file also says what its columns depend on beside the query, as its `origin`, and which queries
they are of, as `keys`. What has been computed is in a store: where it has these queries and no others, the
file is another name of it.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from forebear.artifacts.digests import file_digest, params_digest
from forebear.artifacts.growing import Store, store_path
from forebear.artifacts.hdf5 import (
    SCORE_UNITS,
    Attributes,
    check_finite,
    datasets_of,
    open_checked,
    open_to_stay,
    read_attributes,
)
from forebear.gradients.blocks import Block
from forebear.gradients.outer_products import Matrices, OuterProducts, Rows, as_slice, in_memory
from forebear.runtime.atomic import explained_write

KIND = "query columns"


@dataclass(frozen=True)
class QueryColumns:
    """Query gradients, raw or preconditioned, with what is needed to use them without a model."""

    columns: dict[str, h5py.Dataset | Rows | OuterProducts]  # block → [Q, O, I], in the file
    losses: Tensor  # [Q]
    keys: list[str]  # [Q] the queries' `records.record_key`
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

    def at(self, rows: np.ndarray) -> "QueryColumns":
        """Those of some of these queries, at increasing rows; they stay in the file."""

        def some(part: h5py.Dataset | OuterProducts) -> Rows | OuterProducts:
            if isinstance(part, OuterProducts):
                return OuterProducts(Rows(part.left, rows), Rows(part.right, rows))
            return Rows(part, rows)

        columns = {block: some(part) for block, part in self.columns.items()}
        keys = [self.keys[row] for row in rows]
        return replace(self, columns=columns, losses=self.losses[rows], keys=keys)

    def of_keys(self, keys: Collection[str]) -> "QueryColumns":
        """Those of some of these queries, by their keys."""
        return self.at(np.array([row for row, key in enumerate(self.keys) if key in keys], int))


def origin_of(params: Mapping, files: Sequence[str | Path]) -> str:
    """Digest of all that columns depend on beside the queries.

    Args:
        params: of the job, JSON-compatible.
        files: its inputs; what columns of queries say of their own origin stands for them.
    """

    def digest(path: str | Path) -> str:
        if Path(path).suffix != ".h5":
            return file_digest(path)
        attributes = read_attributes(path)
        return attributes.get("origin", attributes["content"])

    return hashlib.sha256("".join([params_digest(params), *map(digest, files)]).encode()).hexdigest()


class QueryColumnsWriter:
    """Takes columns as they are computed, and at last what it took.

    Attributes:
        missing: [M], rows of the queries whose columns are not there, ascending.
    """

    def __init__(self, store: Store):
        self._store, self.noted = store, {}
        self.missing = np.flatnonzero(~store.kept)

    def write(self, block: str, rows: slice | np.ndarray | Tensor, columns: Tensor) -> None:
        """Columns [q, O, I] of the queries of a slice, or at rows [q]."""
        self.write_part("columns", block, rows, columns)

    def write_part(self, kind: str, name: str, rows: slice | np.ndarray | Tensor, vectors: Tensor) -> None:
        """What raw gradients are made of, as `gradients.stream_query_gradients` hands it on.

        Where [q, T, ...] has a smaller T than other queries have, zeros follow.
        """
        values = vectors.cpu()
        check_finite(values.numpy(), f"{name}/{kind}")
        self.write_rows(f"{name}/{kind}", rows, values)

    def write_rows(self, name: str, rows: slice | np.ndarray | Tensor, values: Tensor) -> None:
        """Some rows of a dataset [Q, ...]."""
        values, indices = values.cpu().numpy(), self._store.rows[rows if isinstance(rows, slice) else np.asarray(rows)]
        if (np.diff(indices) <= 0).any():  # h5py wants increasing ones
            indices, order = np.unique(indices, return_index=True)
            values = values[order]
        with explained_write(self._store.path):
            dataset = self._store.by_query(name, values.shape[1:], values.dtype)
            if values.shape[1:] != dataset.shape[1:]:
                more = np.subtract(dataset.shape, values.shape)
                values = np.pad(values, [(0, 0), *((0, zeros) for zeros in more[1:])])
            dataset[as_slice(indices)] = values
            self._store.file.flush()  # a full disk is noticed here; HDF5 can crash when it finds out later

    def read_rows(self, name: str) -> Tensor:
        """All rows of a dataset [Q, ...]."""
        return torch.from_numpy(self._store.file[name][()][self._store.rows])

    def note(self, attributes: Attributes) -> None:
        """`seconds` and `peak_bytes`, and what else there is to say."""
        self.noted |= attributes


@contextmanager
def create_query_columns(
    path: str | Path, losses: Tensor, blocks: Sequence[Block], attributes: Attributes, keys: Sequence[str]
) -> Iterator[QueryColumnsWriter]:
    """A file of columns, which appears when the block ends; those that are in its store already need not be written.

    Args:
        losses: [Q], of which those of missing queries are read when the block ends.
        attributes: among them `origin`, see `origin_of`.
        keys: [Q], the queries' `records.record_key`.
    """
    described = json.dumps([{**asdict(block), "rows": [block.rows.start, block.rows.stop]} for block in blocks])
    store = Store(store_path(path), KIND, {"origin": attributes["origin"]}, keys)
    writer = QueryColumnsWriter(store)
    if len(writer.missing) < len(keys):
        print(f"{len(keys) - len(writer.missing)} of {len(keys)} queries are kept as they are")
    with closing(store.file):
        yield writer
        if len(writer.missing):
            writer.write_rows("losses", writer.missing, losses[writer.missing])
            store.mark(slice(None), store.rows[writer.missing])
        store.give(path, {**attributes, **SCORE_UNITS, "blocks": described, **writer.noted})


def read_query_columns(path: str | Path, expected: Attributes | None = None) -> QueryColumns:
    """The columns stay in the file, which stays open."""
    file = open_to_stay(path, KIND, expected)
    described = json.loads(file.attrs["blocks"])
    blocks = [Block(**{**b, "rows": slice(*b["rows"]), "shape": tuple(b["shape"])}) for b in described]
    losses, keys = torch.from_numpy(file["losses"][()]), file["keys"].asstr()[()].tolist()
    if f"{blocks[0].name}/gradients" in file:
        left, right = datasets_of(file, "gradients"), datasets_of(file, "activations")
        columns = {block.name: OuterProducts(left[block.name], right[block.module]) for block in blocks}
    elif f"{blocks[0].name}/left" in file:
        left, right = datasets_of(file, "left"), datasets_of(file, "right")
        columns = {block.name: OuterProducts(left[block.name], right[block.name]) for block in blocks}
    else:
        columns = datasets_of(file, "columns")
    return QueryColumns(columns, losses, keys, blocks, dict(file.attrs))


def solves_of(path: str | Path) -> list[dict]:
    """Of queries that a solver made: each stage's `point` and `sequences`, and every query's `iterations` and `residuals`."""
    with open_checked(path, KIND, content=False) as file:
        return [
            {
                "point": point,
                "sequences": sequences,
                **{key: file[f"{point}/{key}"][()].tolist() for key in ("iterations", "residuals")},
            }
            for point, sequences in json.loads(file.attrs["sequences"]).items()
        ]
