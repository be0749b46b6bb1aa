"""Records → token sequences → padded batches, and the one place where labels are shifted.

A record is a JSON object with either `text` (every token is a target) or `prompt` and
`completion` (only the completion's tokens are). A classifier's has `text` and `label`; its
one target is the class, at the last token. It may carry `id`, and queries may carry
`relevant` (ids of the documents that state the answer), `candidates` (ids of those that are
ranked for it; all by default) and `group`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forebear.errors import ForebearError
from forebear.formats import as_record

IGNORED = -100  # the label of a position without a target; cross_entropy's default


@dataclass(frozen=True)
class Example:
    """One token sequence; the loss is on `ids[first_target:]`, or on the class if there is one."""

    ids: Tensor  # [T] int64
    first_target: int
    label: int | None = None  # the class of the whole sequence

    @property
    def positions(self) -> int:
        """How many positions can carry loss: a language model's last one has nothing to predict."""
        return len(self.ids) - (self.label is None)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Under a causal mask real positions never see the padding to their right, so no
    attention mask is needed.
    """

    indices: Tensor  # [B] places of the sequences in the data set
    ids: Tensor  # [B, T]
    labels: Tensor  # [B, T] the token or class that position t must predict, or IGNORED
    positions: Tensor  # [B, T] bool: the first `Example.positions` of each sequence

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.indices, self.ids.to(device), self.labels.to(device), self.positions.to(device))


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


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def collection_digest(paths: Sequence[str | Path]) -> str:
    """SHA-256 of the digests of several files, in their order."""
    return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()


def encode(
    records: Sequence[dict],
    tokenizer,
    max_length: int,
    end: bool = True,
    classes: Mapping[str, int] | None = None,
) -> list[Example]:
    """Tokenise records as `<bos> prompt completion <eos>`, or `<bos> text` for a classifier.

    A sequence over `max_length` tokens loses the beginning of its prompt (or the end of
    its text), so that the targets stay; how many were cut is printed.

    Args:
        end: append the end-of-sequence token as a target (training data); a query's
            measurement leaves it out.
        classes: a classifier's labels; None for a language model.
    """
    if classes is not None:
        return [_labelled(record, tokenizer, max_length, classes) for record in records]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    head = [] if bos is None else [bos]
    tail = [eos] if end and eos is not None else []

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    examples, cut = [], 0
    for record in records:
        if "text" in record:
            whole = head + ids_of(record["text"]) + tail
            ids, first_target = whole[:max_length], 1
        else:
            prompt, completion = head + ids_of(record["prompt"]), ids_of(record["completion"]) + tail
            whole = prompt + completion
            completion = completion[: max_length - 1]
            prompt = prompt[max(0, len(prompt) + len(completion) - max_length) :]
            ids, first_target = prompt + completion, len(prompt)
        cut += len(whole) > max_length
        if len(ids) <= first_target or first_target == 0:
            raise ForebearError(
                f"record {record['id']!r} has no token to predict after tokenisation; remove it or lengthen it."
            )
        examples.append(Example(torch.tensor(ids), first_target))
    if cut:
        print(f"{cut} of {len(records)} sequences were longer than max_length and were cut to {max_length} tokens")
    return examples


def _labelled(record: dict, tokenizer, max_length: int, classes: Mapping[str, int]) -> Example:
    if record.get("label") not in classes:
        raise ForebearError(
            f"record {record['id']!r}: its label is {record.get('label')!r}, but the classifier knows "
            f"{', '.join(map(repr, classes))}; correct it."
        )
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = (head + tokenizer(full_text(record), add_special_tokens=False)["input_ids"])[:max_length]
    return Example(torch.tensor(ids), len(ids), classes[record["label"]])


def classes_of(records: Sequence[dict]) -> list[str]:
    """The labels of a classifier's training records, in alphabetical order."""
    return sorted({record["label"] for record in records if "label" in record})


def shifted_labels(ids: Tensor, first_targets: Tensor, lengths: Tensor) -> Tensor:
    """labels[b, t] = ids[b, t + 1] where token t + 1 is a target, else IGNORED.

    Args:
        ids: [B, T], right-padded.
        first_targets: [B], index of the first token that carries loss.
        lengths: [B], real tokens of each sequence.
    """
    following = torch.arange(1, ids.shape[1] + 1)  # the token that each position predicts
    is_target = (following >= first_targets[:, None]) & (following < lengths[:, None])
    return torch.where(is_target, ids.roll(-1, dims=1), IGNORED)


def collate(examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """Pad the chosen sequences to the longest of them."""
    chosen = [examples[i] for i in indices]
    lengths = torch.tensor([len(e.ids) for e in chosen])
    ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in chosen], batch_first=True)
    labels = shifted_labels(ids, torch.tensor([e.first_target for e in chosen]), lengths)
    for row, example in enumerate(chosen):
        if example.label is not None:
            labels[row, len(example.ids) - 1] = example.label
    positions = torch.arange(ids.shape[1]) < torch.tensor([e.positions for e in chosen])[:, None]
    return Batch(torch.as_tensor(indices), ids, labels, positions)


def batch_indices(
    examples: Sequence[Example], batch_tokens: int, documents: Sequence[int] | None = None
) -> list[list[int]]:
    """Partition a data set, longest first, into batches of at most `batch_tokens` padded tokens.

    Neighbours have like lengths, so there is little padding; the largest batch comes
    first, so that running out of memory is noticed at once.

    Args:
        documents: places of the sequences that are wanted, ascending; all by default. Some
            of the whole's batches are again those batches.
    """
    lengths = np.array([len(e.ids) for e in examples])
    wanted = np.arange(len(examples)) if documents is None else np.asarray(documents, dtype=np.int64)
    batches, current = [], []
    for index in wanted[np.argsort(-lengths[wanted], kind="stable")].tolist():
        if current and lengths[current[0]] * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches


def batches(examples: Sequence[Example], batch_tokens: int, documents: Sequence[int] | None = None) -> list[Batch]:
    return [collate(examples, indices) for indices in batch_indices(examples, batch_tokens, documents)]


def shard_documents(examples: Sequence[Example], batch_tokens: int, shard: int, shards: int) -> np.ndarray | None:
    """Places, ascending, of the documents of a shard, counted from 1: those of every `shards`-th batch.

    Shards are made of whole batches, so that the very same batches are computed however
    many they are, and have like lengths. There are none where there are fewer batches than shards.

    Returns:
        [n] int64; None for all documents, where there is one shard.
    """
    if shards == 1:
        return None
    chosen = batch_indices(examples, batch_tokens)[shard - 1 :: shards]
    return np.array(sorted(index for batch in chosen for index in batch), dtype=np.int64)


def number_of_positions(examples: Sequence[Example], documents: Sequence[int] | None = None) -> int:
    """Positions of some sequences, or of all, that can carry loss: what covariances average over."""
    chosen = examples if documents is None else [examples[i] for i in documents]
    return sum(e.positions for e in chosen)
