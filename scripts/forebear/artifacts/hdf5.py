"""HDF5 artifacts: written whole or not at all, and checked when they are read.

Every artifact names in its root attributes what it is and what it was made from, and
carries a digest of its own content. A file is written under a private temporary name and
renamed when it is complete, so a file under its final name is a whole one; readers check
that nevertheless, and the digests.
"""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import h5py
import numpy as np

from forebear.artifacts.digests import content_digest
from forebear.errors import ForebearError, OutOfReachError, removal
from forebear.runtime.atomic import atomic_path, error_number
from forebear.runtime.holders import holders

FORMAT = "forebear 3"

SCORE_UNITS = {
    "units": "loss: nats summed over a sequence's target tokens; curvature: of the mean loss over sequences",
    "sign": "score > 0: more weight on the document lowers the query's loss",
}

Attributes = Mapping[str, str | int | float]

# What a file system without locks says: NFS without its lock daemon, Lustre without `flock`; 524 is the kernel's ENOTSUPP.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, 524}


def open_hdf5(path: str | Path, mode: str, exclusive: bool = False) -> h5py.File:
    """Open an HDF5 file, without a lock where the file system has none.

    HDF5 locks a file as long as it is open: readers keep writers out, a writer everybody.

    A file that is whole, or that is written under a private name, needs no lock.

    Args:
        exclusive: it has a name that another process may write too, which only a lock keeps out.

    Raises:
        ForebearError: there are no locks, and the file needs one or the library cannot do without.
        OutOfReachError: another process keeps it locked, or the system does not let it be read.
        OSError: there is no such file, it is not HDF5, or could not be written.
    """
    try:
        return h5py.File(path, mode)
    except OSError as error:
        number = error_number(error)
        if number == errno.EAGAIN:
            raise OutOfReachError(_held(path, mode)) from error
        if mode == "r" and number not in {None, errno.ENOENT, *NO_LOCKS}:
            raise OutOfReachError(
                f"{path}: could not be read ({os.strerror(number)}), which says nothing of its content; make it readable, "
                "or check the disk, and run again."
            ) from error
        if number not in NO_LOCKS:
            raise
        if not exclusive:
            with suppress(OSError):
                return h5py.File(path, mode, locking=False)
        raise ForebearError(
            f"{path}: lies on a file system without locks ({os.strerror(number)}, errno {number}); set the environment variable "
            "HDF5_USE_FILE_LOCKING=FALSE, look that no process of an earlier run is left, and run again, or keep results/ on "
            "another file system."
        ) from error


def _held(path: str | Path, mode: str) -> str:
    """The sentence about a file that another process keeps locked."""
    who = ", ".join(holders(path)) or "which one, the system does not tell"
    if mode == "r":
        return (
            f"{path}: another process has it open for writing ({who}), so it cannot be read now; nothing else is wrong "
            "with it. Close it there, or open it there for reading only, h5py.File(…, 'r'), and run again. If no process "
            "writes it, the environment variable HDF5_USE_FILE_LOCKING=FALSE reads it nevertheless."
        )
    return (
        f"{path}: could not be written, as another process has it open ({who}), perhaps one left behind by a killed "
        "run; wait for that one or end it, and run again."
    )


@contextmanager
def create(path: str | Path, kind: str, attributes: Attributes) -> Iterator[h5py.File]:
    """Write an artifact; it appears under its name only when the block succeeds."""
    with atomic_path(path) as temporary, open_hdf5(temporary, "w") as file:
        file.attrs.update({**attributes, "format": FORMAT, "kind": kind, "complete": True})
        yield file
        file.flush()
        file.attrs["content"] = content_digest(file)


@contextmanager
def open_checked(
    path: str | Path, kind: str | None, expected: Attributes | None = None, content: bool = True
) -> Iterator[h5py.File]:
    """An artifact, open for reading while the block runs; see `open_to_stay`."""
    with open_to_stay(path, kind, expected, content) as file:
        yield file


def open_to_stay(
    path: str | Path, kind: str | None, expected: Attributes | None = None, content: bool = True
) -> h5py.File:
    """Open an artifact for reading; it is closed when nothing refers to it any more.

    Args:
        kind: what it must hold; None for anything.
        expected: root attributes that it must carry, such as `model_digest`.
        content: also check its content against its digest, which reads it once.

    Raises:
        ForebearError: it is damaged, changed, unfinished, of another kind or format, or made
            from something else.
        OutOfReachError: it may be whole, and cannot be opened now.
    """
    path = Path(path)
    remedy = f"delete it and run again: {removal(path)}"
    try:
        file = open_hdf5(path, "r")
    except FileNotFoundError as error:
        raise ForebearError(f"{path}: there is no such file; run the rule that makes it.") from error
    except OSError as error:
        raise ForebearError(f"{path}: the file is damaged or not HDF5 ({error}); {remedy}") from error
    try:
        problem = _problem(file, kind, expected or {}, content)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # whatever HDF5 stumbles over
        problem = f"the file is damaged ({error})"
    if problem:
        file.close()
        raise ForebearError(f"{path}: {problem}; {remedy}")
    return file


def _problem(file: h5py.File, kind: str | None, expected: Attributes, content: bool) -> str | None:
    """Why an artifact must not be used."""
    attributes = dict(file.attrs)
    if attributes.get("format") != FORMAT:
        return f"has the format {attributes.get('format')!r}, and this version of forebear reads {FORMAT!r}"
    if not attributes.get("complete", False):
        return "the file was not finished"
    if kind is not None and attributes["kind"] != kind:
        return f"holds {attributes['kind']}, not {kind}"
    for key, value in expected.items():
        found = attributes.get(key)
        if found != value:
            return f"was made with another {key.replace('_', ' ')} ({found!s:.20} instead of {value!s:.20})"
    if content and attributes.get("content") != content_digest(file):
        return "its content is not what was written there"
    return None


def read_attributes(path: str | Path, kind: str | None = None) -> dict:
    """Root attributes of an artifact, without reading its content."""
    with open_checked(path, kind, content=False) as file:
        return dict(file.attrs)


def write_array(file: h5py.File, name: str, values: np.ndarray) -> None:
    """Write a dataset `/{block}/{what}`.

    Raises:
        ForebearError: it has NaN or infinite values.
    """
    check_finite(values, name)
    file[name] = values
    file.flush()  # a full disk is noticed here; HDF5 can crash when it finds out later


def check_finite(values: np.ndarray, name: str) -> None:
    """Refuse to write a dataset with NaN or infinite values."""
    if not np.isfinite(values).all():
        block, _, what = name.rpartition("/")
        raise ForebearError(
            f"{block}: its {what} has values that are not finite, so nothing was written; look for NaN in the "
            "model and its data, or raise `damping`."
        )


def datasets_of(file: h5py.File, dataset: str) -> dict[str, h5py.Dataset]:
    """`/{block}/{dataset}` of every block that has it, to be read from as long as the file is open.

    Raises:
        ForebearError: no block has it.
    """
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: object) -> None:
        block, _, leaf = name.rpartition("/")
        if leaf == dataset and isinstance(item, h5py.Dataset):
            found[block] = item

    file.visititems(visit)
    if not found:
        raise ForebearError(
            f"{file.filename}: has no {dataset} for any block; delete it and run again: {removal(file.filename)}"
        )
    return found
