"""HDF5 artifacts: written whole or not at all, and checked when they are read.

Every artifact names in its root attributes what it is and what it was made from. A file
is written under a private temporary name and renamed when it is complete, so a file under
its final name is a whole one; readers check that nevertheless, and the digests.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from forebear.errors import ForebearError

FORMAT = "forebear 1"

Attributes = Mapping[str, str | int | float]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise ForebearError(f"{path}: could not be written ({error}); free some space and run again.") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def create(path: str | Path, kind: str, attributes: Attributes) -> Iterator[h5py.File]:
    """Write an artifact; it appears under its name only when the block succeeds."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update({**attributes, "format": FORMAT, "kind": kind, "complete": False})
        yield file
        file.attrs["complete"] = True


@contextmanager
def open_checked(path: str | Path, kind: str, expected: Attributes | None = None) -> Iterator[h5py.File]:
    """Open an artifact for reading.

    Args:
        expected: root attributes that it must carry, such as `model_digest`.

    Raises:
        ForebearError: it is damaged, unfinished, of another kind or format, or made from
            something else.
    """
    path = Path(path)
    remedy = f"delete it and run again: rm {path}"
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError as error:
        raise ForebearError(f"{path}: there is no such file; run the rule that makes it.") from error
    except OSError as error:
        raise ForebearError(f"{path}: the file is damaged or not HDF5 ({error}); {remedy}") from error
    with file:
        if file.attrs.get("format") != FORMAT or not file.attrs.get("complete", False):
            raise ForebearError(
                f"{path}: not a complete artifact of this version of forebear (it must be {FORMAT!r}); {remedy}"
            )
        if file.attrs["kind"] != kind:
            raise ForebearError(f"{path}: holds {file.attrs['kind']}, not {kind}; {remedy}")
        for key, value in (expected or {}).items():
            if file.attrs.get(key) != value:
                raise ForebearError(
                    f"{path}: was made with another {key.replace('_', ' ')} "
                    f"({file.attrs.get(key)!s:.20} instead of {value!s:.20}); {remedy}"
                )
        yield file


def read_attributes(path: str | Path, kind: str, expected: Attributes | None = None) -> dict:
    with open_checked(path, kind, expected) as file:
        return dict(file.attrs)


def read_root(path: str | Path) -> dict:
    """Root attributes of an artifact of any kind."""
    with h5py.File(path, "r") as file:
        kind = file.attrs.get("kind", "")
    return read_attributes(path, kind)


def write_tensors(file: h5py.File, tensors: Mapping[str, Tensor], dataset: str) -> None:
    """Write {block: tensor} as `/{block}/{dataset}`."""
    for block, tensor in tensors.items():
        file.create_dataset(f"{block}/{dataset}", data=tensor.cpu().numpy())


def read_tensors(file: h5py.File, dataset: str) -> dict[str, Tensor]:
    """Read `/{block}/{dataset}` of every block that has it.

    Raises:
        ForebearError: no block has it.
    """
    found: dict[str, Tensor] = {}

    def visit(name: str, item: object) -> None:
        block, _, leaf = name.rpartition("/")
        if leaf == dataset and isinstance(item, h5py.Dataset):
            found[block] = torch.from_numpy(item[()])

    file.visititems(visit)
    if not found:
        raise ForebearError(f"{file.filename}: has no {dataset} for any block; delete it and run again.")
    return found


class ResumableMatrix:
    """A long [rows, columns] matrix, written some rows at a time.

    Rows go to `.{name}.partial` with a `written` mask; a later job with the same
    attributes continues there, and `finish` gives the file its name.
    """

    def __init__(self, path: str | Path, kind: str, attributes: Attributes, shape: tuple[int, int]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._attributes = {**attributes, "format": FORMAT, "kind": kind, "complete": False}
        self._file = self._reopen(shape) or self._new(shape)

    def _reopen(self, shape: tuple[int, int]) -> h5py.File | None:
        """The file of an interrupted job, if it is whole and of the same job."""
        with suppress(OSError, KeyError):
            file = h5py.File(self._partial, "r+")
            if dict(file.attrs) == self._attributes and file["matrix"].shape == shape:
                return file
            file.close()
        return None

    def _new(self, shape: tuple[int, int]) -> h5py.File:
        file = h5py.File(self._partial, "w")
        file.attrs.update(self._attributes)
        file.create_dataset("matrix", shape, np.float32, fillvalue=np.nan)
        file.create_dataset("written", (shape[0],), bool)
        file.flush()
        return file

    @property
    def written(self) -> np.ndarray:
        """[rows] bool."""
        return self._file["written"][()]

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Write whole rows; `values` is [len(rows), columns]."""
        order = np.argsort(rows)  # h5py wants increasing indices
        self._file["matrix"][rows[order]] = values[order]
        self._file["written"][rows[order]] = True
        self._file.flush()

    def finish(self, attributes: Attributes) -> None:
        """Add last attributes and give the file its final name."""
        if not self.written.all():
            raise ForebearError(f"{self._partial}: some rows are missing; run again.")
        self._file.attrs.update({**attributes, "complete": True})
        self._file.close()
        os.replace(self._partial, self.path)
