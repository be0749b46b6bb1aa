"""Rows of tables, through the library `datasets`: Parquet, Arrow, folders that it saved."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from forebear.data.text_files import Row, needs_extra
from forebear.errors import ForebearError

BATCH = 1000  # rows that are held at once


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are read: all if none has to be there."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    def among(self, there: Sequence[str], where: str | Path) -> list[str]:
        """Those of a table that has the columns `there`.

        Raises:
            ForebearError: a required one is missing, and which there are.
        """
        for column in self.required:
            if column not in there:
                raise ForebearError(f"{where}: has no column {column!r}; there are {', '.join(map(repr, there))}.")
        return [name for name in there if not self.required or name in (*self.required, *self.optional)]


EVERY = Columns()


def parquet_rows(path: Path, columns: Columns = EVERY) -> Iterator[Row]:
    """Each row of a Parquet file."""
    pa = pyarrow_library(path, "Parquet")
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(BATCH, columns=columns.among(file.schema_arrow.names, path))
            yield from rows_of(batches, _features(file.schema_arrow), str(path))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "Parquet", error) from error


def arrow_rows(path: Path, columns: Columns = EVERY) -> Iterator[Row]:
    """Each row of an Arrow file, in the format of streams or of files."""
    pa = pyarrow_library(path, "Arrow")
    try:
        with pa.memory_map(str(path)) as source:
            try:
                reader = pa.ipc.open_stream(source)
                batches = iter(reader)
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(source)
                batches = (reader.get_batch(k) for k in range(reader.num_record_batches))
            wanted = columns.among(reader.schema.names, path)
            parts = (part for batch in batches for part in _slices(batch.select(wanted)))
            yield from rows_of(parts, _features(reader.schema), str(path))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, "Arrow", error) from error


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a data set, or a dictionary of its splits, as this folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def saved_rows(folder: Path, split: str | None = None, columns: Columns = EVERY) -> Iterator[Row]:
    """Each row of a folder that `save_to_disk` wrote.

    Args:
        split: which of several.

    Raises:
        ForebearError: there is no such split, or the folder is damaged.
    """
    datasets, pa = datasets_library(folder, "a folder that it saved"), pyarrow_library(folder, "Arrow")
    try:
        data = datasets.load_from_disk(str(folder))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, "a folder that `datasets` saved", error) from error
    if isinstance(data, datasets.DatasetDict):
        data = data[chosen_split(split, list(data), str(folder))]
    elif split not in (None, str(data.split)):
        raise ForebearError(f"{folder}: has one data set and no split {split!r}; leave `split` out.")
    data = data.select_columns(columns.among(data.column_names, folder))
    try:
        yield from rows_of(data.with_format("arrow").iter(BATCH), data.features, str(folder))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(folder, "a folder that `datasets` saved", error) from error


def chosen_split(split: str | None, splits: list[str], where: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        found = "has several splits" if split is None else f"has no split {split!r}"
        raise ForebearError(f"{where}: {found}; set `split` to one of {', '.join(splits)}.")
    return split


def rows_of(tables, features, file: str) -> Iterator[Row]:
    """Rows of Arrow tables; a class is given by its name, and what JSON has no form for is left out."""
    classes = {name: feature.names for name, feature in features.items() if hasattr(feature, "int2str")}
    number = 0
    for table in tables:
        for row in table.to_pylist():
            number += 1
            content = {name: _plain(value) for name, value in row.items() if _has_form(value)}
            for name, labels in classes.items():
                if isinstance(content.get(name), int):  # −1 is for rows without a class
                    content[name] = labels[content[name]] if content[name] >= 0 else None
            yield Row(file, f"row {number}", content)


def _plain(value: object) -> object:
    """Without the keys that a list's other objects have, but this one has not."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if inner is not None and _has_form(inner)}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _has_form(value: object) -> bool:
    return value is None or isinstance(value, str | bool | int | float | dict | list)


def _slices(batch) -> Iterator:
    return (batch.slice(first, BATCH) for first in range(0, batch.num_rows, BATCH))


def _features(schema) -> dict:
    """What `datasets` noted of the columns, if it wrote the file."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    return datasets.Features.from_arrow_schema(schema)


def pyarrow_library(path: str | Path, what: str):
    try:
        import pyarrow
    except ImportError as error:
        raise needs_extra(path, what) from error
    return pyarrow


def datasets_library(path: str | Path, what: str):
    try:
        import datasets
    except ImportError as error:
        raise needs_extra(path, what) from error
    return datasets


def _damaged(path: Path, kind: str, error: Exception) -> ForebearError:
    reason = str(error).partition("\n")[0]
    return ForebearError(f"{path}: cannot be read as {kind} ({reason}); fetch or make it again.")
