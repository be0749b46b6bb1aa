"""Rows of text files as people have them: JSON lines, JSON arrays, CSV and plain text, compressed or not.

Files are read as a stream, so that their size does not matter. How a file is compressed
follows from its first bytes, whatever its name is.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from forebear.errors import ForebearError

CHUNK = 1 << 16  # bytes of a JSON array that are read at once
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError)
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SPACE = re.compile(r"[ \t\n\r]*")


class Row(NamedTuple):
    """What stands at one place of what a user brings, before it is checked."""

    file: str
    place: str  # such as "line 3"
    content: object

    @property
    def where(self) -> str:
        return f"{self.file}, {self.place}"


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed.

    Raises:
        ForebearError: the file cannot be opened, or there is no library for its compression.
    """
    with _explained_damage(path, lambda: ""):
        raw = path.open("rb")
    with raw:
        beginning = raw.peek(8)
        kind = next((name for magic, name in _MAGIC.items() if beginning.startswith(magic)), None)
        if kind is None:
            yield raw
        elif kind == "zstd":
            with io.BufferedReader(_zstd(path)) as stream:
                yield stream
        else:
            reader = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}[kind]
            with io.BufferedReader(reader(raw)) as stream:
                yield stream


def _zstd(path: Path) -> io.RawIOBase:
    """Of pyarrow, which comes with `datasets`: it notices a file that was cut off."""
    try:
        import pyarrow
    except ImportError as error:
        raise needs_extra(path, "Zstandard") from error
    return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")


def needs_extra(path: str | Path, what: str) -> ForebearError:
    """What is said where the library `datasets` is missing."""
    return ForebearError(
        f'{path}: reading {what} takes the library `datasets`, which is not installed; `pip install -e ".[data]"` '
        "installs it."
    )


@contextmanager
def _explained_damage(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """Say in a sentence that a file cannot be read; `place()` is where, as in "after line 3, "."""
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ForebearError(f"{path}: {place()}the file cannot be read ({os.strerror(error.errno)}).") from error
        raise ForebearError(
            f"{path}: {place()}the compressed file is damaged or cut off ({error}); fetch or make it again."
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file with their ends, in UTF-8 with or without a byte-order mark."""
    number = 0
    with _explained_damage(path, lambda: f"after line {number}, "), opened(path) as stream:
        _refuse_wide_characters(path, stream.peek(64)[:64])
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path}, line {number}", error, path) from error
            yield number, text


def _refuse_wide_characters(path: Path, beginning: bytes) -> None:
    if b"\0" in beginning or beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ForebearError(
            f"{path}: not valid UTF-8, but perhaps UTF-16 or no text at all; `iconv -f UTF-16 -t UTF-8 {path.name}` "
            "converts UTF-16."
        )


def _not_utf8(where: str, error: UnicodeDecodeError, path: Path) -> ForebearError:
    return ForebearError(
        f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}); if it is Latin-1, "
        f"`iconv -f LATIN1 -t UTF-8 {path.name}` converts it."
    )


def json_rows(path: Path) -> Iterator[Row]:
    """Each line of a file of JSON lines, or each element of one JSON array; blank lines are passed over."""
    if beginning_of(path).startswith(b"["):
        yield from _array_rows(path)
        return
    for number, line in _lines(path):
        if line.isspace():
            continue
        place = f"line {number}"
        try:
            content = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ForebearError(
                f"{path}, {place}: not valid JSON ({_reason(error)}); each line must be a JSON object of its own, "
                "or the whole file an array of them."
            ) from error
        yield Row(str(path), place, content)


def beginning_of(path: Path) -> bytes:
    """The first bytes of a file's content that are no space, decompressed, without byte-order mark; few or none."""
    with _explained_damage(path, lambda: ""), opened(path) as stream:
        if not stream.peek(1):
            return b""
        return stream.peek(64)[:64].removeprefix(codecs.BOM_UTF8).lstrip()


def _reason(error: json.JSONDecodeError | RecursionError) -> str:
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"


def _array_rows(path: Path) -> Iterator[Row]:
    number = 0
    with _explained_damage(path, lambda: f"after element {number}, "), opened(path) as stream:
        try:
            for number, content in enumerate(_elements(_decoded(stream)), start=1):
                yield Row(str(path), f"element {number}", content)
        except UnicodeDecodeError as error:
            raise _not_utf8(f"{path}, after element {number}", error, path) from error
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise ForebearError(
                f"{path}, after element {number} of the array: not valid JSON ({reason}); the file must be one array "
                "of objects, or a JSON object on each line."
            ) from error


def _decoded(stream: io.BufferedReader) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    while chunk := stream.read(CHUNK):
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


def _elements(chunks: Iterator[str]) -> Iterator[object]:
    """The elements of a JSON array that comes in pieces, of which only those of one element are held."""
    decode = json.JSONDecoder().raw_decode
    buffer, at, more = next(chunks).lstrip(), 1, 1  # after the "["
    first = True
    while True:
        try:
            at = _SPACE.match(buffer, at).end()
            if first and buffer[at : at + 1] == "]":
                item, after = None, at
            else:
                item, after = decode(buffer, at)
                after = _SPACE.match(buffer, after).end()
            if buffer[after : after + 1] not in (",", "]") or after == len(buffer):
                raise json.JSONDecodeError("Expecting ',' or ']'", buffer, after)
        except json.JSONDecodeError:
            following = "".join(islice(chunks, more))  # twice as many each time: a long element is not tried often
            if not following:
                raise
            buffer, at, more = buffer[at:] + following, 0, 2 * more
            continue
        if after > at:
            yield item
        first, more = False, 1
        if buffer[after] == "]":
            rest = buffer[after + 1 :] + "".join(chunks)
            if rest.strip():
                raise json.JSONDecodeError("Extra data after the array", rest, 0)
            return
        at = after + 1


def text_rows(path: Path) -> Iterator[Row]:
    """Each line of a plain text as a `text`; blank lines are passed over."""
    for number, line in _lines(path):
        if not line.isspace():
            yield Row(str(path), f"line {number}", {"text": line.rstrip("\r\n")})


def csv_rows(path: Path, delimiter: str | None = None, may_be_empty: Collection[str] = ()) -> Iterator[Row]:
    """Each row of a CSV file whose first row has the columns' names; cells are texts.

    Args:
        delimiter: by default the most frequent of comma, semicolon and tab in the first row.
        may_be_empty: columns in which an empty cell is an empty text; in others it is no value.
    """
    csv.field_size_limit(sys.maxsize)  # the module's default refuses documents over 131,072 characters
    lines = (line for _, line in _lines(path))
    first = next(lines, "")
    delimiter = delimiter or max(",;\t", key=first.count)
    reader = csv.reader(_joined(first, lines), delimiter=delimiter, strict=True)
    names, begins = None, 1
    try:
        for cells in reader:
            place, begins = f"line {begins}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if names is None:
                names = _column_names(cells, path)
                continue
            if len(cells) != len(names):
                raise ForebearError(
                    f"{path}, {place}: has {len(cells)} cells, but the first row names {len(names)} columns "
                    f"({', '.join(names)}); put texts with {delimiter!r} or line ends in double quotes."
                )
            row = zip(names, cells, strict=True)
            yield Row(str(path), place, {n: cell if cell or n in may_be_empty else None for n, cell in row})
    except csv.Error as error:
        raise ForebearError(f"{path}, line {begins}: not valid CSV ({error}); correct its quotes.") from error


def _joined(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others


def _column_names(cells: list[str], path: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ForebearError(f"{path}: the first row names the column {twice[0]!r} twice; rename one of them.")
    return names
