"""A long matrix that is written row by row, so that a killed job goes on where it was.

Its rows are documents and its columns queries. Where other queries are asked for, those that the
finished file has already are taken over, and only the others' columns are to be written.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from forebear.artifacts.digests import content_digest
from forebear.artifacts.hdf5 import FORMAT, Attributes, open_hdf5, open_usable
from forebear.errors import ForebearError, shortened
from forebear.runtime.atomic import explained_write, keep, kept_path, same_file

OF_QUERIES = ("query_data_digest",)  # attributes that may differ where queries are kept


class ResumableMatrix:
    """A long [rows, columns] matrix, written some rows at a time.

    Rows go to `.{name}.partial` with a `written` mask; a later job with the same
    attributes continues there, and `finish` gives the file its name, and a second one, so that
    it outlives its removal by Snakemake. If the finished file of the same job is there under that,
    all rows count as written and it stays. HDF5 locks the partial
    file while it is open, so a second process that wants to write it is refused.

    Args:
        documents: [rows] places in the data set, ascending, of the documents of a shard; the
            file keeps them. By default the rows are all documents.
        keys: [columns] what names a column, whichever others there are; without them none is
            taken over.
        places: the columns that are to be written, ascending, the others staying NaN; all by default.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        attributes: Attributes,
        shape: tuple[int, int],
        documents: np.ndarray | None = None,
        keys: Sequence[str] = (),
        places: np.ndarray | None = None,
    ):
        self.path = Path(path)
        self._keys, self._places = list(keys), np.arange(shape[1]) if places is None else places
        self._documents = np.arange(shape[0]) if documents is None else documents
        self._sharded = documents is not None
        if self._sharded:
            attributes = {**attributes, "documents_digest": hashlib.sha256(documents.tobytes()).hexdigest()}
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._attributes = {**attributes, "format": FORMAT, "kind": kind, "complete": False}
        self._shape = shape
        finished = open_usable(kept_path(path), kind, attributes)
        self.finished = finished is not None
        if finished is not None:
            finished.close()
            return
        with explained_write(self._partial):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._reopen() or self._new(kind, attributes)

    def _reopen(self) -> h5py.File | None:
        """The file of an interrupted job, if it is whole and of the same job."""
        try:
            file = open_hdf5(self._partial, "r+", exclusive=True)
            if dict(file.attrs) == self._attributes and file["matrix"].shape == self._shape:
                return file
            file.close()
        except (OSError, KeyError):  # there is none, or it is damaged
            pass
        return None

    def _new(self, kind: str, attributes: Attributes) -> h5py.File:
        file = open_hdf5(self._partial, "w", exclusive=True)
        file.attrs.update(self._attributes)
        file.create_dataset("matrix", self._shape, np.float32, fillvalue=np.nan)
        file.create_dataset("written", self._shape[:1], bool)
        if self._sharded:
            file["documents"] = self._documents
        if self._keys:
            file["keys"] = np.array(self._keys, "S")
        self._take_over(file, kind, {key: value for key, value in attributes.items() if key not in OF_QUERIES})
        file.flush()
        return file

    def _take_over(self, file: h5py.File, kind: str, expected: Attributes) -> None:
        """Write the columns that the finished file has, and in /kept: the rows, the columns that are left, the cost."""
        kept, rows, new = file.create_group("kept"), np.zeros(self._shape[0], bool), self._places
        if old := open_usable(kept_path(self.path), kind, expected):
            with old:
                exact = old["exact"][()] if "exact" in old else ~rows
                matrix, columns = old["matrix"][()], list(old["keys"].asstr()[()]) if "keys" in old else []
                cost = {key: old.attrs[key] for key in ("seconds", "peak_bytes") if key in old.attrs}
        else:
            columns = []
        # A column of NaN is a query that was left out.
        known = {key: column for column, key in enumerate(columns) if not np.isnan(matrix[exact, column]).any()}
        places = np.array([place for place in self._places if self._keys and self._keys[place] in known], int)
        if len(places):
            taken = np.full(self._shape, np.nan, np.float32)
            taken[np.ix_(exact, places)] = matrix[np.ix_(exact, [known[self._keys[place]] for place in places])]
            file["matrix"][:] = taken
            rows, new = exact, np.setdiff1d(self._places, places)
            kept.attrs.update(cost)
            print(f"{self.path}: {len(places)} of {len(self._places)} queries are kept as they are")
        kept["rows"], kept["new"] = rows, new
        if not len(new):
            file["written"][:] = rows

    @property
    def written(self) -> np.ndarray:
        """[rows] bool."""
        return np.ones(self._shape[0], bool) if self.finished else self._file["written"][()]

    @property
    def missing(self) -> np.ndarray:
        """Places of the documents whose rows are still to be written, ascending."""
        return self._documents[~self.written]

    @property
    def kept(self) -> np.ndarray:
        """Places of the documents of which only the columns `new` are to be written, ascending."""
        return self._documents[self._file["kept/rows"][()]]

    @property
    def new(self) -> np.ndarray:
        """Columns that were not taken over, ascending."""
        return self._file["kept/new"][()]

    @property
    def values(self) -> np.ndarray:
        """[rows, columns] of a matrix that is not finished, NaN where nothing has been written."""
        return np.where(self.written[:, None], self._file["matrix"][()], np.float32(np.nan))

    def write(self, documents: np.ndarray, values: np.ndarray, columns: np.ndarray | None = None) -> None:
        """Write some documents' rows; `values` is [n, columns], or only `columns` of them, the others staying as they are.

        Raises:
            ForebearError: a row has NaN or infinite values.
        """
        check_scores(self.path, documents, values)
        rows = np.searchsorted(self._documents, documents)
        order = np.argsort(rows)  # h5py wants increasing indices
        rows, values = rows[order], values[order]
        if columns is not None:
            whole = self._file["matrix"][rows]
            whole[:, columns] = values
            values = whole
        with explained_write(self._partial):
            self._file["matrix"][rows] = values
            self._file.flush()  # the rows first, so that the mask never speaks of rows that a kill has lost
            self._file["written"][rows] = True
            self._file.flush()

    def finish(self, attributes: Attributes, rest: np.ndarray | None = None) -> None:
        """Add last attributes and give the file its final name; one that was finished only becomes the newest.

        Args:
            attributes: to `seconds` and `peak_bytes` is added what the columns took that were taken over.
            rest: [rows, columns], of which the rows that were not written are taken; the file's
                dataset `exact` [rows] then says which were.
        """
        if self.finished:
            same_file(kept_path(self.path), self.path)
            self.path.touch()
            return
        if rest is None and not self.written.all():
            raise ForebearError(f"{self._partial}: some rows are missing; run again.")
        with explained_write(self._partial):
            if rest is not None:
                written = self.written
                self._file.require_dataset("exact", written.shape, bool)[:] = written
                self._file["matrix"][:] = np.where(written[:, None], self._file["matrix"][()], rest)
            before = dict(self._file["kept"].attrs)
            del self._file["kept"]
            self._file.attrs.update({**joined_cost(before, attributes), "complete": True})
            self._file.attrs["content"] = content_digest(self._file)
            self._file.close()
            os.replace(self._partial, self.path)
        keep(self.path)


def joined_cost(before: Attributes, attributes: Attributes) -> dict:
    """Attributes with what came `before`: its `seconds` are added, and the larger of the `peak_bytes` stays."""
    joined = dict(attributes)
    for key, join in (("seconds", sum), ("peak_bytes", max)):
        if key in before:
            joined[key] = join((before[key], attributes[key]))
    return joined


def check_scores(path: str | Path, rows: np.ndarray, values: np.ndarray) -> None:
    """Refuse scores [n, columns] of the documents `rows` [n] that are NaN or infinite."""
    bad = rows[~np.isfinite(values).all(1)]
    if len(bad):
        raise ForebearError(
            f"{path}: the scores of the documents {shortened(bad)} (counted from 0) are not finite; look for NaN in "
            "the model and in these documents, or raise `damping`."
        )
