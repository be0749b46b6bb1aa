"""What people bring, as records: JSON lines, checked.

A record is a JSON object with `text` (every token is a target), `prompt` and `completion`
(only the completion's tokens are), or a chat's `messages` (the assistant's turns are). A
classifier's has a `label`; its one target is the class, at the last token. It may carry `id`,
and queries may carry `relevant` (ids of the documents that state the answer), `candidates` (ids
of those that are ranked for it; all by default) and `group`. Ids and labels may be whole
numbers; here they are strings.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from forebear.data.conversations import spoken
from forebear.data.formats import as_record
from forebear.data.sources import Source, source_rows
from forebear.errors import ForebearError

SEEN = ("text", "prompt", "completion", "messages", "tools", "label")  # what a model sees of a record
_SCANNED = 1 << 24  # bytes of a file whose lines are counted at once
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_records(source: str | Path | Source, limit: int | None = None) -> list[dict]:
    """All records of a source, checked; see `checked_records`."""
    return list(checked_records(source, limit))


def checked_records(source: str | Path | Source, limit: int | None = None) -> Iterator[dict]:
    """The records of a source one at a time, checked; ids default to running numbers from 1.

    Args:
        source: anything that `sources` reads; a plain path is a file, a folder or a pattern.
        limit: read the first so many rows only.

    Raises:
        ForebearError: naming file and line, for a row that is not a valid record.
    """
    if not isinstance(source, Source):
        source = Source(path=str(source))
    if limit is not None:
        source = replace(source, limit=limit)
    numbers_by_id, mended = {}, 0
    for number, row in enumerate(source_rows(source), start=1):
        whole = whole_characters(row.content)
        mended += whole is not row.content
        record = check_record(whole, row.where)
        record.setdefault("id", str(number))
        earlier = numbers_by_id.setdefault(record["id"], number)
        if earlier != number:
            first = next(islice(source_rows(source), earlier - 1, None))
            place = first.place if first.file == row.file else first.where
            raise ForebearError(f"{row.where}: the id {record['id']!r} was already used in {place}.")
        yield record
    if not numbers_by_id:
        raise ForebearError(f"{source}: has no records; give it at least one.")
    if mended:
        print(
            f"{source}: half a character (a lone surrogate such as \\ud83d) in {mended} of its lines; U+FFFD stands for it"
        )


@dataclass(frozen=True, eq=False)
class Records(Sequence[dict]):
    """The records of a file that forebear prepared, each parsed when it is looked at."""

    path: str | Path

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each line ends, [N + 1] with 0 before the first."""
        ends, first = [np.zeros(1, np.int64)], 0
        with Path(self.path).open("rb") as handle:
            while part := handle.read(_SCANNED):
                ends.append(np.flatnonzero(np.frombuffer(part, np.uint8) == ord("\n")) + first + 1)
                first += len(part)
        return np.concatenate(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, end = self._ends[index : index + 2].tolist()
        with Path(self.path).open("rb") as handle:
            handle.seek(start)
            return self._parsed(handle.read(end - start), index)

    def __iter__(self) -> Iterator[dict]:
        with Path(self.path).open("rb") as handle:
            for index, line in enumerate(handle):
                yield self._parsed(line, index)

    def _parsed(self, line: bytes, index: int) -> dict:
        try:
            return json.loads(line)
        except ValueError as error:
            raise ForebearError(
                f"{self.path}, line {index + 1}: not what was written there; delete the file and run again."
            ) from error


@dataclass(frozen=True, eq=False)
class StagedRecords(Sequence[dict]):
    """The records of several stages one after the other, each with its `stage`."""

    parts: Mapping[str, Sequence[dict]]  # stage → its records

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        for stage, part in self.parts.items():
            if index < len(part):
                return {**part[index], "stage": stage}
            index -= len(part)
        raise AssertionError("a place that `range` accepts is one of a part")


def record_key(record: Mapping) -> str:
    """Digest of what a model sees of a record: another id, or other relevant documents, make no other."""
    seen = {field: record[field] for field in SEEN if field in record}
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def whole_characters(value: object) -> object:
    """The same JSON value with U+FFFD for every lone surrogate, which no encoding can write; itself if it has none."""
    if isinstance(value, str):
        return value if value.isascii() else _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        items = [whole_characters(item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        items = {whole_characters(key): whole_characters(item) for key, item in value.items()}
        same = all(new is old for new, old in zip(items.values(), value.values(), strict=False))
        return value if same and items.keys() == value.keys() else items
    return value


def check_record(line: object, where: str) -> dict:
    """A line of a file, whatever data set it is of, as a record with its ids and label as strings.

    Raises:
        ForebearError: beginning with `where`, for a line that is no record.
    """
    if not isinstance(line, dict):
        raise ForebearError(f"{where}: expected a JSON object, found {type(line).__name__}.")
    record = as_record({key: value for key, value in line.items() if value is not None}, where)
    if "messages" not in record:
        _check_texts(record, where)
    if "id" in record:
        record = {**record, "id": _name(record["id"], "id", where)}
    if "label" in record:
        label = record["label"]
        record = {**record, "label": json.dumps(label) if isinstance(label, bool) else _name(label, "label", where)}
    for key in ("relevant", "candidates"):
        if key in record:
            named = record[key] if isinstance(record[key], list) else [record[key]]
            record = {**record, key: list(dict.fromkeys(_name(name, key, where) for name in named))}
    return record


def _check_texts(record: Mapping, where: str) -> None:
    for key in ("text",) if "text" in record else ("completion", "prompt"):
        value = record.get(key)
        if not isinstance(value, str) or (key == "text" and not value.strip()):
            what = "is missing or empty" if value is None or isinstance(value, str) else f"is {type(value).__name__}"
            raise ForebearError(
                f"{where}: needs a non-empty string `text`, or strings `prompt` and `completion`, or `messages`; "
                f"`{key}` {what}."
            )


def _name(value: object, key: str, where: str) -> str:
    """An id or label, which may be a whole number: 3 and "3" are the same."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ForebearError(f"{where}: `{key}` must be a string or a whole number, found {value!r}.")


def read_jsonl(path: str | Path) -> list[dict]:
    """The objects of a JSONL file that forebear itself wrote."""
    with Path(path).open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def write_records(path: str | Path, records: Iterable[dict]) -> None:
    with Path(path).open("w", encoding="utf-8") as handle:
        for record in records:
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")


def full_text(record: dict) -> str:
    """The words of a record, as text rankers see them."""
    if "messages" in record:
        return "\n".join(map(spoken, record["messages"]))
    return record.get("text") or f"{record['prompt']} {record['completion']}"


def classes_of(records: Iterable[dict]) -> list[str]:
    """The labels of a classifier's training records, in alphabetical order."""
    return sorted({record["label"] for record in records if "label" in record})
