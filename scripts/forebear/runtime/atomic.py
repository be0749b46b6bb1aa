"""Files appear under their name only when they are whole, and a failure to write is one sentence."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forebear.errors import ForebearError

# What a user can do when the system refuses to write; every other error is not about writing.
REMEDIES = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space or ask for a larger quota, and run again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and run again",
    errno.EROFS: "make the folder writable, or run in another one",
    errno.EACCES: "make the folder writable, or run in another one",
    errno.EPERM: "make the folder writable, or run in another one",
    errno.EIO: "check the disk and run again",
}


@contextmanager
def explained_write(path: str | Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into a sentence; all other exceptions pass."""
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if isinstance(error, ForebearError) or number not in REMEDIES or not _is_about(error, path):
            raise
        raise ForebearError(f"{path}: could not be written ({os.strerror(number)}); {REMEDIES[number]}.") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A private temporary name beside `path` that becomes `path` if the block succeeds.

    Two processes that write one file, such as an orphan of a killed run and its
    successor, never see each other's half-written bytes; the last one to finish stays.
    """
    path = Path(path)
    with explained_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()


@contextmanager
def atomic_files(directory: str | Path) -> Iterator[Path]:
    """A private folder inside `directory` whose files move there if the block succeeds."""
    directory = Path(directory)
    with explained_write(directory):
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".{uuid.uuid4().hex[:12]}.partial"
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.iterdir():
                os.replace(file, directory / file.name)
        finally:
            shutil.rmtree(temporary)


def same_file(source: str | Path, target: str | Path) -> None:
    """Make `target` another name of `source`, or a copy of it, in one step."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)


def own_copy(path: str | Path) -> None:
    """Make a file that has other names a copy of its own, so that what is written to it is in none of them."""
    path = Path(path)
    if path.is_file() and path.stat().st_nlink > 1:
        with atomic_path(path) as temporary:
            shutil.copy2(path, temporary)


def error_number(error: BaseException | None) -> int | None:
    """The system's error number, from the exception or those that it arose from.

    HDF5 and safetensors name it only in their text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if named := re.search(r"(?:errno = |os error )(\d+)", str(error)):
            return int(named[1])
        error = error.__context__
    return None


def _is_about(error: Exception, path: str | Path) -> bool:
    """Whether an error's file, if it names one, lies in the folder of `path` or is that or one above it."""
    name = getattr(error, "filename", None)
    if not name:
        return True
    folder, file = Path(path).absolute().parent, Path(os.fsdecode(name)).absolute()
    return file.is_relative_to(folder) or folder.is_relative_to(file)
