"""A long matrix that is written row by row, so that a killed job goes on where it was."""

import hashlib
import os
from pathlib import Path

import h5py
import numpy as np

from forebear.errors import ForebearError
from forebear.store import FORMAT, Attributes, check_scores, content_digest, open_checked
from forebear.writing import explained_write


def is_current(path: str | Path, kind: str, expected: Attributes) -> bool:
    """Whether an artifact is there, whole, and has the expected root attributes."""
    try:
        with open_checked(path, kind, expected):
            return True
    except ForebearError:
        return False


class ResumableMatrix:
    """A long [rows, columns] matrix, written some rows at a time.

    Rows go to `.{name}.partial` with a `written` mask; a later job with the same
    attributes continues there, and `finish` gives the file its name. If the finished file
    of the same job is there, all rows count as written and it stays. HDF5 locks the partial
    file while it is open, so a second process that wants to write it is refused.

    Args:
        documents: [rows] places in the data set, ascending, of the documents of a shard; the
            file keeps them. By default the rows are all documents.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        attributes: Attributes,
        shape: tuple[int, int],
        documents: np.ndarray | None = None,
    ):
        self.path = Path(path)
        self._documents = np.arange(shape[0]) if documents is None else documents
        self._sharded = documents is not None
        if self._sharded:
            attributes = {**attributes, "documents_digest": hashlib.sha256(documents.tobytes()).hexdigest()}
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._attributes = {**attributes, "format": FORMAT, "kind": kind, "complete": False}
        self._shape = shape
        self.finished = is_current(path, kind, attributes)
        if self.finished:
            return
        with explained_write(self._partial):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._reopen() or self._new()

    def _reopen(self) -> h5py.File | None:
        """The file of an interrupted job, if it is whole and of the same job."""
        try:
            file = h5py.File(self._partial, "r+")
            if dict(file.attrs) == self._attributes and file["matrix"].shape == self._shape:
                return file
            file.close()
        except BlockingIOError:  # its writer lives; to create the file anew would empty it under the lock
            raise
        except (OSError, KeyError):  # there is none, or it is damaged
            pass
        return None

    def _new(self) -> h5py.File:
        file = h5py.File(self._partial, "w")
        file.attrs.update(self._attributes)
        file.create_dataset("matrix", self._shape, np.float32, fillvalue=np.nan)
        file.create_dataset("written", self._shape[:1], bool)
        if self._sharded:
            file["documents"] = self._documents
        file.flush()
        return file

    @property
    def written(self) -> np.ndarray:
        """[rows] bool."""
        return np.ones(self._shape[0], bool) if self.finished else self._file["written"][()]

    @property
    def missing(self) -> np.ndarray:
        """Places of the documents whose rows are still to be written, ascending."""
        return self._documents[~self.written]

    @property
    def values(self) -> np.ndarray:
        """[rows, columns] of a matrix that is not finished, NaN where nothing has been written."""
        return np.where(self.written[:, None], self._file["matrix"][()], np.float32(np.nan))

    def write(self, documents: np.ndarray, values: np.ndarray, columns: np.ndarray | None = None) -> None:
        """Write some documents' rows; `values` is [n, columns], or only `columns` of them, the others staying NaN.

        Raises:
            ForebearError: a row has NaN or infinite values.
        """
        check_scores(self.path, documents, values)
        if columns is not None:
            whole = np.full((len(documents), self._shape[1]), np.nan, np.float32)
            whole[:, columns] = values
            values = whole
        rows = np.searchsorted(self._documents, documents)
        order = np.argsort(rows)  # h5py wants increasing indices
        with explained_write(self._partial):
            self._file["matrix"][rows[order]] = values[order]
            self._file.flush()  # the rows first, so that the mask never speaks of rows that a kill has lost
            self._file["written"][rows[order]] = True
            self._file.flush()

    def finish(self, attributes: Attributes, rest: np.ndarray | None = None) -> None:
        """Add last attributes and give the file its final name; one that was finished only becomes the newest.

        Args:
            rest: [rows, columns], of which the rows that were not written are taken; the file's
                dataset `exact` [rows] then says which were.
        """
        if self.finished:
            self.path.touch()
            return
        if rest is None and not self.written.all():
            raise ForebearError(f"{self._partial}: some rows are missing; run again.")
        with explained_write(self._partial):
            if rest is not None:
                written = self.written
                self._file.require_dataset("exact", written.shape, bool)[:] = written
                self._file["matrix"][:] = np.where(written[:, None], self._file["matrix"][()], rest)
            self._file.attrs.update({**attributes, "complete": True})
            self._file.attrs["content"] = content_digest(self._file)
            self._file.close()
            os.replace(self._partial, self.path)
