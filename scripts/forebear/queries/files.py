"""The files of query gradients, raw and preconditioned, and the queries' losses.

Preconditioned ones are `/{block}/columns` [Q, O, I]; compressed ones `/{block}/left` [Q, r, O] and
`/{block}/right` [Q, r, I], with `/{block}/residuals` [Q], what is lost of the block. Those of a
solver have `/{point}/iterations` and `/{point}/residuals` [Q] of every inverse. Raw ones are not
formed: they are `/{block}/gradients` [Q, T, O] and `/{linear map}/activations` [Q, T, I], where T of
an expert's map is the most tokens that a query sends there. They may be larger than memory, so they
are written and read in parts.

A file also says what its columns depend on beside the query, as its `origin`, and which queries
they are of, as `keys`. It is kept under a second name; when it is written again with other queries, the
columns that are there already are taken over, and only those of new queries are computed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from forebear.artifacts.digests import file_digest, params_digest
from forebear.artifacts.growing import joined_cost
from forebear.artifacts.hdf5 import (
    SCORE_UNITS,
    Attributes,
    create,
    datasets_of,
    open_checked,
    open_to_stay,
    open_usable,
    read_attributes,
    write_tensor,
)
from forebear.gradients.blocks import Block
from forebear.gradients.outer_products import Matrices, OuterProducts, Rows, as_slice, in_memory
from forebear.runtime.atomic import keep, kept_path

KIND = "query columns"
_OVER_TOKENS = ("gradients", "activations")  # datasets [Q, T, ...]


@dataclass(frozen=True)
class QueryColumns:
    """Query gradients, raw or preconditioned, with what is needed to use them without a model."""

    columns: dict[str, h5py.Dataset | Rows | OuterProducts]  # block → [Q, O, I], in the file
    losses: Tensor  # [Q]
    places: np.ndarray  # [Q] which of the study's queries these are
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
        return replace(self, columns=columns, losses=self.losses[rows], places=self.places[rows], keys=keys)


@dataclass(frozen=True)
class Kept:
    """What a file has already of the columns that are wanted now."""

    file: h5py.File | None  # None where there is none of the same origin
    rows: dict[int, int]  # row that is wanted → row in the file
    missing: np.ndarray  # [M] rows that are wanted and not there, ascending

    def losses(self) -> Tensor:
        """[Q], NaN for those that are missing."""
        losses = torch.full((len(self.rows) + len(self.missing),), torch.nan)
        for row, old in self.rows.items():
            losses[row] = float(self.file["losses"][old])
        return losses

    @property
    def cost(self) -> dict[str, float]:
        """`seconds` and `peak_bytes` of the columns that are kept."""
        return {key: self.file.attrs[key] for key in ("seconds", "peak_bytes")} if self.rows else {}


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


def kept_columns(path: str | Path, origin: str, keys: Sequence[str]) -> Kept:
    """Which of the wanted columns, by the queries' keys, a file has that was made in the same way."""
    file = open_usable(kept_path(path), KIND, {"origin": origin})
    if file is None:
        return Kept(None, {}, np.arange(len(keys)))
    known = {key: row for row, key in enumerate(file["keys"].asstr()[()])}
    rows = {row: known[key] for row, key in enumerate(keys) if key in known}
    print(f"{len(rows)} of {len(keys)} queries are kept as they are")
    return Kept(file, rows, np.setdiff1d(np.arange(len(keys)), list(rows)).astype(int))


class QueryColumnsWriter:
    """Takes columns as they are computed, beside those that are kept, and at last what it took."""

    def __init__(self, file: h5py.File, queries: int, kept: Kept | None, blocks: Sequence[Block]):
        self._file, self._queries, self._kept = file, queries, kept
        self._experts = {name for block in blocks if block.share is not None for name in (block.name, block.module)}

    def write(self, block: str, rows: slice | np.ndarray | Tensor, columns: Tensor) -> None:
        """Columns [q, O, I] of the queries of a slice, or at increasing rows [q]."""
        self.write_part("columns", block, rows, columns)

    def write_part(self, kind: str, name: str, rows: slice | np.ndarray | Tensor, vectors: Tensor) -> None:
        """What raw gradients are made of, as `scoring.stream_query_gradients` hands it on."""
        if kind in _OVER_TOKENS and name in self._experts:
            vectors = self._fitted(f"{name}/{kind}", vectors)
        self._keep(f"{name}/{kind}", tuple(vectors.shape[1:]))
        rows = rows if isinstance(rows, slice) else as_slice(np.asarray(rows))
        write_tensor(self._file, vectors, name, kind, rows, self._queries)

    def _fitted(self, name: str, vectors: Tensor) -> Tensor:
        """Vectors [q, T, D] with the T of a dataset that is begun, or grows, for as many tokens as there are now."""
        tokens, width = vectors.shape[1:]
        if name not in self._file:
            kept = self._kept.file[name].shape[1] if self._kept and self._kept.rows else 0
            shape, dtype = (self._queries, max(tokens, kept), width), vectors.cpu().numpy().dtype
            growing = {"maxshape": (self._queries, None, width), "chunks": (1, max(1, shape[1]), width)}
            self._fill(self._file.create_dataset(name, shape, dtype, **growing))
        dataset = self._file[name]
        if dataset.shape[1] < tokens:
            dataset.resize(tokens, axis=1)
        return nn.functional.pad(vectors, (0, 0, 0, dataset.shape[1] - tokens))

    def note(self, cost: Attributes) -> None:
        """`seconds` and `peak_bytes`, to which those of the kept columns are added, and what else there is to say."""
        self._file.attrs.update(joined_cost(self._kept.cost if self._kept else {}, cost))

    def keep_rest(self) -> None:
        """Take over the datasets of which nothing was written."""

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and "/" in name:
                self._keep(name, item.shape[1:])

        if self._kept and self._kept.rows:
            self._kept.file.visititems(visit)

    def _keep(self, name: str, shape: tuple[int, ...]) -> None:
        """Begin a dataset with the kept rows, which among other queries may have more or less padding after their tokens."""
        if name in self._file or not (self._kept and self._kept.rows):
            return
        self._fill(self._file.create_dataset(name, (self._queries, *shape), self._kept.file[name].dtype))

    def _fill(self, target: h5py.Dataset) -> None:
        """Write the kept rows, if there are any."""
        shape = target.shape[1:]
        for row, old in self._kept.rows.items() if self._kept else ():
            source = self._kept.file[target.name]
            values = source[old]
            both = tuple(map(slice, map(min, shape, values.shape)))
            fitted = np.zeros(shape, source.dtype)
            fitted[both] = values[both]
            target[row] = fitted


@contextmanager
def create_query_columns(
    path: str | Path,
    losses: Tensor,
    blocks: Sequence[Block],
    attributes: Attributes,
    keys: Sequence[str],
    places: Tensor | None = None,
    kept: Kept | None = None,
) -> Iterator[QueryColumnsWriter]:
    """A file of columns, which appears when the block ends.

    Args:
        losses: [Q], read when the block ends.
        attributes: among them `origin`, see `origin_of`.
        keys: [Q], the queries' `records.record_key`.
        places: [Q], which of the study's queries these are; all of them by default.
        kept: what is taken over of the file that was there.
    """
    described = json.dumps([{**asdict(block), "rows": [block.rows.start, block.rows.stop]} for block in blocks])
    with create(path, KIND, {**attributes, **SCORE_UNITS, "blocks": described}) as file:
        writer = QueryColumnsWriter(file, len(losses), kept, blocks)
        yield writer
        writer.keep_rest()
        file["losses"] = losses.numpy()
        file["places"] = np.arange(len(losses)) if places is None else places.numpy()
        file["keys"] = np.array(keys, "S")
    keep(path)


def read_query_columns(path: str | Path, expected: Attributes | None = None) -> QueryColumns:
    """The columns stay in the file, which stays open."""
    file = open_to_stay(path, KIND, expected)
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
    return QueryColumns(columns, losses, places, list(file["keys"].asstr()[()]), blocks, dict(file.attrs))


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
