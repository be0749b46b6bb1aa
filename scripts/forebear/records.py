"""What people bring, as records: JSON lines, checked.

A record is a JSON object with either `text` (every token is a target) or `prompt` and
`completion` (only the completion's tokens are). A classifier's has `text` and `label`; its
one target is the class, at the last token. It may carry `id`, and queries may carry
`relevant` (ids of the documents that state the answer), `candidates` (ids of those that are
ranked for it; all by default) and `group`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from forebear.errors import ForebearError
from forebear.formats import as_record
from forebear.sources import Source, source_rows


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
    numbers_by_id = {}
    for number, row in enumerate(source_rows(source), start=1):
        record = _checked(row.content, row.where)
        record.setdefault("id", str(number))
        earlier = numbers_by_id.setdefault(record["id"], number)
        if earlier != number:
            first = next(islice(source_rows(source), earlier - 1, None))
            place = first.place if first.file == row.file else first.where
            raise ForebearError(f"{row.where}: the id {record['id']!r} was already used in {place}.")
        yield record
    if not numbers_by_id:
        raise ForebearError(f"{source}: has no records; give it at least one.")


def record_key(record: Mapping) -> str:
    """Digest of what a model sees of a record: another id, or other relevant documents, make no other."""
    seen = {field: record[field] for field in ("text", "prompt", "completion", "label") if field in record}
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _checked(record: object, where: str) -> dict:
    if not isinstance(record, dict):
        raise ForebearError(f"{where}: expected a JSON object, found {type(record).__name__}.")
    record = as_record(record)
    keys = {"text"} if "text" in record else {"prompt", "completion"}
    for key in sorted(keys):
        if not isinstance(record.get(key), str) or not record[key].strip():
            raise ForebearError(
                f"{where}: needs a non-empty string `text`, or `prompt` and `completion`; `{key}` is missing or empty."
            )
    for key in ("id", "label"):
        if key in record and not isinstance(record[key], str):
            raise ForebearError(f"{where}: `{key}` must be a string, found {record[key]!r}.")
    return record


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
    return record.get("text") or f"{record['prompt']} {record['completion']}"


def classes_of(records: Sequence[dict]) -> list[str]:
    """The labels of a classifier's training records, in alphabetical order."""
    return sorted({record["label"] for record in records if "label" in record})


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def collection_digest(paths: Sequence[str | Path]) -> str:
    """SHA-256 of the digests of several files, in their order."""
    return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()
