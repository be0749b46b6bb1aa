"""The files of scores and of documents' self-influence, the store that a pass fills, and what it took to make an artifact.

A file of scores has a group for each estimator that its pass serves: `/{estimator}/matrix` [N, Q], and where
queries are compressed `/{estimator}/exact` [N], the documents whose scores are of whole ones. Its
attributes say what that estimator took, those of the file what all have been made from. A column that is NaN as a
whole is a query that was left out.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from forebear.artifacts.growing import Store, store_path
from forebear.artifacts.hdf5 import SCORE_UNITS, Attributes, create, open_checked, open_to_stay, read_attributes
from forebear.artifacts.manifests import read_manifest
from forebear.artifacts.shards import Shard, shard_kind
from forebear.errors import ForebearError, removal, shortened
from forebear.runtime.atomic import explained_write


class ScoresWriter:
    """Takes the scores of one estimator after those of another."""

    def __init__(self, file: h5py.File, path: str | Path):
        self._file, self._path = file, path

    def write(
        self, estimator: str, scores: np.ndarray, attributes: Attributes, exact: np.ndarray | None = None
    ) -> None:
        """Scores [N, Q], and as `exact` [N] bool those that are not of compressed queries; all by default."""
        left_out = np.isnan(scores).all(0)
        check_scores(self._path, np.arange(len(scores)), scores if left_out.all() else scores[:, ~left_out])
        group = self._file.create_group(estimator)
        group.attrs.update(attributes)
        group["matrix"] = scores
        if exact is not None:
            group["exact"] = exact
        self._file.flush()


@contextmanager
def create_scores(path: str | Path, attributes: Attributes) -> Iterator[ScoresWriter]:
    """A file of scores, which appears when the block ends."""
    with create(path, "scores", {**attributes, **SCORE_UNITS}) as file:
        yield ScoresWriter(file, path)


@contextmanager
def create_scores_shard(
    path: str | Path, attributes: Attributes, shard: Shard, documents: np.ndarray
) -> Iterator[ScoresWriter]:
    """The same for some documents [n], whose indices it keeps."""
    with create(path, shard_kind("scores", shard), {**attributes, **SCORE_UNITS}) as file:
        file["documents"] = documents
        yield ScoresWriter(file, path)


def write_scores(
    path: str | Path, estimator: str, scores: np.ndarray, attributes: Attributes, exact: np.ndarray | None = None
) -> None:
    """A file of the scores of one estimator, see `ScoresWriter.write`."""
    with create_scores(path, attributes) as file:
        file.write(estimator, scores, {}, exact)


@dataclass(frozen=True)
class Scores:
    """What a file has of an estimator."""

    matrix: np.ndarray  # [N, Q]
    attributes: dict  # of the file and of the estimator's group
    exact: np.ndarray  # [N] bool: the documents whose scores are not of compressed queries


def open_scores(path: str | Path, expected: Attributes | None = None) -> h5py.File:
    """A file of scores, checked, which stays open; for `scores_of` several estimators."""
    return open_to_stay(path, "scores", expected)


def scores_of(file: h5py.File, estimator: str) -> Scores:
    """The scores of one estimator.

    Raises:
        ForebearError: the file has none of it.
    """
    if estimator not in file:
        raise ForebearError(
            f"{file.filename}: has scores of {shortened(sorted(file))}, not of {estimator}; delete it and run again: "
            f"{removal(file.filename)}"
        )
    group = file[estimator]
    matrix = group["matrix"][()]
    exact = group["exact"][()] if "exact" in group else np.ones(len(matrix), bool)
    return Scores(matrix, {**file.attrs, **group.attrs}, exact)


def read_scores(path: str | Path, estimator: str, expected: Attributes | None = None) -> Scores:
    """The scores of one estimator, checked."""
    with open_scores(path, expected) as file:
        return scores_of(file, estimator)


class ScoreStore:
    """What has been computed of an estimator's scores of some documents, in a store beside the pass's output.

    Args:
        output: the pass's file.
        made_from: attributes of all that the scores depend on beside the queries.
        documents: [n], indices in the data set, ascending.
        keys: [Q], the study's queries, by `records.record_key`.
        asked: the keys of those that the estimator has scores for.
    """

    def __init__(
        self,
        output: str | Path,
        estimator: str,
        made_from: Attributes,
        documents: np.ndarray,
        keys: Sequence[str],
        asked: Collection[str],
    ):
        self.path, self.documents, self._keys = Path(output), documents, list(keys)
        self._asked = np.array([key in set(asked) for key in keys], bool)
        made_from = {**made_from, "documents_digest": hashlib.sha256(documents.tobytes()).hexdigest()}
        self._store = Store(store_path(output, estimator), f"store of {estimator}", made_from, keys, len(documents))
        self._matrix = self._store.by_part("matrix", np.float32, np.nan)
        kept = self._store.kept & self._asked
        if kept.any():
            print(f"{output}: {kept.sum()} of {self._asked.sum()} queries of {estimator} are kept as they are")

    @property
    def missing(self) -> np.ndarray:
        """[n, Q] bool: what is asked for and not written."""
        return ~self._store.written[:, self._store.rows] & self._asked

    @property
    def values(self) -> np.ndarray:
        """[n, Q], NaN where nothing is asked for or written."""
        rows = self._store.rows
        there = self._store.written[:, rows] & self._asked
        return np.where(there, self._matrix[()][:, rows], np.float32(np.nan))

    def finished(self) -> np.ndarray:
        """The same where nothing is missing.

        Raises:
            ForebearError: something is.
        """
        if self.missing.any():
            raise ForebearError(f"{self._store.path}: some scores are missing; run again.")
        return self.values

    def write(self, documents: np.ndarray, values: np.ndarray, keys: Sequence[str]) -> None:
        """Add scores [b, q] of some documents for some queries; what is written already stays.

        Raises:
            ForebearError: some are NaN or infinite.
        """
        check_scores(self.path, documents, values)
        parts = np.searchsorted(self.documents, documents)
        order = np.argsort(parts)  # h5py wants increasing indices
        parts = parts[order]
        row_of = dict(zip(self._keys, self._store.rows, strict=True))
        rows = np.array([row_of[key] for key in keys], int)
        with explained_write(self._store.path):
            whole = self._matrix[parts]
            whole[:, rows] = np.where(self._store.written[np.ix_(parts, rows)], whole[:, rows], values[order])
            self._matrix[parts] = whole
            self._store.mark(parts, rows)

    def seal(self, cost: Attributes) -> dict[str, float]:
        """Close the store; `seconds` and `peak_bytes` of all that is in it."""
        sealed = self._store.seal(cost)
        return {key: sealed[key] for key in cost}


def check_scores(path: str | Path, documents: np.ndarray, values: np.ndarray) -> None:
    """Refuse scores [n, Q] of some documents [n] that are NaN or infinite."""
    bad = documents[~np.isfinite(values).all(1)]
    if len(bad):
        raise ForebearError(
            f"{path}: the scores of the documents {shortened(bad)} (counted from 0) are not finite; look for NaN in "
            "the model and in these documents, or raise `damping`."
        )


def read_cost(path: str | Path) -> dict:
    """`seconds` and `peak_bytes` of what made an artifact, or of training a checkpoint, given its manifest."""
    return read_manifest(path)["cost"] if Path(path).suffix == ".json" else read_attributes(path)


def write_self_influence(
    path: str | Path, values: np.ndarray, attributes: Attributes, shard: Shard, documents: np.ndarray
) -> None:
    """Self-influence [n] of a shard's documents, whose indices it keeps."""
    with create(path, shard_kind("self-influence", shard), attributes) as file:
        file["values"], file["documents"] = values, documents


def read_self_influence(path: str | Path, expected: Attributes | None = None) -> np.ndarray:
    with open_checked(path, "self-influence", expected) as file:
        return file["values"][()]
