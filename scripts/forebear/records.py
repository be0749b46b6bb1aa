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
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from forebear.conversations import spoken
from forebear.errors import ForebearError
from forebear.formats import as_record

SEEN = ("text", "prompt", "completion", "messages", "tools", "label")  # what a model sees of a record
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


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
    records, lines_by_id, mended = [], {}, 0
    with path.open("rb") as handle:
        for number, raw in enumerate(islice(handle, limit), start=1):
            where = f"{path}, line {number}"
            line = _parse(raw, where)
            whole = whole_characters(line)
            mended += whole is not line
            record = check_record(whole, where)
            record.setdefault("id", str(number))
            earlier = lines_by_id.setdefault(record["id"], number)
            if earlier != number:
                raise ForebearError(f"{where}: the id {record['id']!r} was already used in line {earlier}.")
            records.append(record)
    if not records:
        raise ForebearError(f"{path}: the file has no records; give it at least one line.")
    if mended:
        print(
            f"{path}: half a character (a lone surrogate such as \\ud83d) in {mended} of its lines; U+FFFD stands for it"
        )
    return records


def record_key(record: Mapping) -> str:
    """Digest of what a model sees of a record: another id, or other relevant documents, make no other."""
    seen = {field: record[field] for field in SEEN if field in record}
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _parse(raw: bytes, where: str) -> object:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ForebearError(f"{where}: not valid UTF-8 ({error.reason} at byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise ForebearError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from error


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
