"""What people name as their documents or queries: where its files are, and its rows one at a time.

A source is a file, a folder of files, a pattern such as `my/*.jsonl.gz`, a folder that
`datasets` saved, or a data set of the hub. What a file is follows from its name, or else
from its first bytes. Nothing is held in memory but the row at hand.
"""

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from forebear.data.tables import EVERY, Columns, arrow_rows, is_saved, parquet_rows, saved_rows
from forebear.data.text_files import Row, beginning_of, csv_rows, json_rows, text_rows
from forebear.errors import ForebearError, shortened

CONTENT = ("text", "prompt", "completion", "messages")  # what a model sees of a record
ABOUT = ("id", "label", "relevant", "candidates", "group")  # what else a record may say
_LISTS = ("messages", "conversations", "tools", "relevant", "candidates")
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_KINDS = {
    "JSON": (".jsonl", ".ndjson", ".json"),
    "CSV": (".csv", ".tsv"),
    "text": (".txt",),
    "Parquet": (".parquet",),
    "Arrow": (".arrow",),
}
_MAGIC = {b"PAR1": "Parquet", b"ARROW1": "Arrow"}
_KIND = {suffix: kind for kind, suffixes in _KINDS.items() for suffix in suffixes}


@dataclass(frozen=True)
class Source:
    """Where rows come from: `path`, or a revision of `hub`."""

    path: str | None = None  # of a file or folder, or a pattern
    hub: str | None = None  # name of a data set there
    revision: str | None = None
    name: str | None = None  # of a subset of the hub's data set
    split: str | None = None  # of a data set that has several
    columns: Mapping[str, str] = field(default_factory=dict)  # field of a record → the column that it is read from
    limit: int | None = None  # only the first so many rows

    @property
    def read(self) -> Columns:
        """The columns of a table that have to be read."""
        if self.columns.keys() & set(CONTENT):
            return Columns(tuple(self.columns.values()), ABOUT)
        return EVERY

    def __str__(self) -> str:
        return self.path or f"{self.hub} at {self.revision}"


def source_rows(source: Source) -> Iterator[Row]:
    """The rows of a source in order, with the columns that were named for fields under those fields' names.

    Where a model's text, prompt, completion or messages are named, the row's other columns
    count only if they are `id`, `label`, `relevant`, `candidates` or `group`. A value that is
    null counts as absent.

    Raises:
        ForebearError: there is no such source, it is damaged, or lacks a column that was named.
    """
    if source.hub:
        from forebear.data.hub_data import hub_rows

        rows = hub_rows(source.hub, source.revision, source.name, source.split, source.read, source.limit)
    else:
        rows = _local_rows(source)
    for row in islice(rows, source.limit):
        yield row._replace(content=_renamed(row, source.columns)) if isinstance(row.content, dict) else row


def source_files(path: str | Path) -> list[Path]:
    """The files that a path stands for, as far as they are there: one, those of a folder, or those of a pattern.

    Names that begin with a dot or an underscore are passed over.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    shown = [file for file in found if file.is_file() and not file.name.startswith((".", "_"))]
    if path.is_dir() and not is_saved(path):
        hidden = [any(part.startswith(".") for part in file.relative_to(path).parts) for file in shown]
        shown = [file for file, out in zip(shown, hidden, strict=True) if not out and _named_kind(file)]
    return sorted(shown)


def _local_rows(source: Source) -> Iterator[Row]:
    path = Path(source.path)
    if path.is_dir() and is_saved(path):
        yield from saved_rows(path, source.split, source.read)
        return
    if source.split:
        raise ForebearError(
            f"{path}: `split` is for data sets of the hub and for folders that `datasets` saved; name the files of "
            "one split by a pattern such as my/train-*.parquet."
        )
    files = source_files(path)
    check_found(path, files)
    for file in files:
        yield from _file_rows(file, source)


def check_found(path: Path, files: Sequence[Path]) -> None:
    """Refuse a path that stands for no file, or for files of several kinds."""
    if not files and glob.has_magic(str(path)):
        raise ForebearError(f"{path}: no file has such a name; check `corpus` in the config.")
    if not files and path.is_dir():
        endings = ", ".join(_KIND)
        raise ForebearError(
            f"{path}: the folder has no file whose name ends in {endings}; check `corpus` in the config."
        )
    if not files:
        raise ForebearError(f"{path}: there is no such file; check `corpus` in the config.")
    kinds = sorted({_named_kind(file) for file in files} - {None})
    if len(kinds) > 1:
        raise ForebearError(
            f"{path}: has files of several kinds ({', '.join(kinds)}): {shortened([f.name for f in files], 4)}; name "
            "those that are meant by a pattern such as my/*.jsonl."
        )


def _named_kind(file: Path) -> str | None:
    """What a file is by its name: JSON, CSV, text, Parquet, Arrow; None if that does not say."""
    name = file.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    return _KIND.get(os.path.splitext(name)[1])


def _file_rows(file: Path, source: Source) -> Iterator[Row]:
    beginning = beginning_of(file)
    magic = next((kind for start, kind in _MAGIC.items() if beginning.startswith(start)), None)
    match magic or _named_kind(file) or ("JSON" if beginning[:1] in (b"{", b"[", b"") else None):
        case "JSON":
            return json_rows(file)
        case "CSV":
            prompts = [source.columns.get(name, name) for name in ("prompt", "completion")]
            return csv_rows(file, "\t" if ".tsv" in file.name.lower() else None, prompts)
        case "text":
            return text_rows(file)
        case "Parquet":
            return parquet_rows(file, source.read)
        case "Arrow":
            return arrow_rows(file, source.read)
    raise ForebearError(
        f"{file}: its name does not say what it contains; let it end in {', '.join(_KIND)}, compressed or not, and "
        "unpack archives first."
    )


def _renamed(row: Row, columns: Mapping[str, str]) -> dict:
    """A row's values that are there under the names of a record's fields."""
    content = row.content
    for name, column in columns.items():
        if column not in content:
            there = ", ".join(map(repr, content))
            raise ForebearError(f"{row.where}: has no {column!r}, which `{name}` is read from; there are {there}.")
    if columns.keys() & set(CONTENT):
        kept = {name: content[name] for name in ABOUT if name in content}
    else:
        kept = {name: value for name, value in content.items() if name not in columns.values()}
    named = {**kept, **{name: content[column] for name, column in columns.items()}}
    return {name: _unpacked(name, value, row.where) for name, value in named.items() if value is not None}


def _unpacked(name: str, value: object, where: str) -> object:
    """A list that stands in a table's cell as JSON."""
    if name not in _LISTS or not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ForebearError(
            f"{where}: `{name}` is not valid JSON ({error.msg} at column {error.colno}); correct it."
        ) from error
