"""What people bring, as records: JSON lines, checked.

A record is a JSON object with either `text` (every token is a target) or `prompt` and
`completion` (only the completion's tokens are). A classifier's has `text` and `label`; its
one target is the class, at the last token. It may carry `id`, and queries may carry
`relevant` (ids of the documents that state the answer), `candidates` (ids of those that are
ranked for it; all by default) and `group`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from forebear.errors import ForebearError
from forebear.formats import as_record


def read_records(path: str | Path, limit: int | None = None) -> list[dict]:
    """The records of a JSONL file, checked; ids default to line numbers.

    Args:
        limit: read the first so many lines only.

    Raises:
        ForebearError: naming file and line, for a line that is not a valid record.
    """
    path = Path(path)
    if not path.is_file():
        raise ForebearError(f"{path}: there is no such file; check `corpus` in the config.")
    records, lines_by_id = [], {}
    with path.open("rb") as handle:
        for number, raw in enumerate(islice(handle, limit), start=1):
            where = f"{path}, line {number}"
            record = _parse_record(raw, where)
            record.setdefault("id", str(number))
            earlier = lines_by_id.setdefault(record["id"], number)
            if earlier != number:
                raise ForebearError(f"{where}: the id {record['id']!r} was already used in line {earlier}.")
            records.append(record)
    if not records:
        raise ForebearError(f"{path}: the file has no records; give it at least one line.")
    return records


def record_key(record: Mapping) -> str:
    """Digest of what a model sees of a record: another id, or other relevant documents, make no other."""
    seen = {field: record[field] for field in ("text", "prompt", "completion", "label") if field in record}
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _parse_record(raw: bytes, where: str) -> dict:
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ForebearError(f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise ForebearError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from error
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
