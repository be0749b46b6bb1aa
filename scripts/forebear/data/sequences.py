"""Records → token sequences with their targets: the one place where what carries loss is decided."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from forebear.data.chat import DEFAULT_CHAT, Chat, chat_spans, rendered
from forebear.data.tokens import Convention, Pieces, Span, convention_of, covering, joined, tokenise
from forebear.errors import ForebearError

CHUNK = 512  # records that are tokenised together


@dataclass(frozen=True)
class Example:
    """One token sequence; the loss is on `ids[first_target:]`, or on the class if there is one.

    Where only some tokens from `first_target` on carry loss, `targets` says which.
    """

    ids: Tensor  # [T] int64
    first_target: int
    label: int | None = None  # the class of the whole sequence
    targets: Tensor | None = None  # [T] bool

    @property
    def positions(self) -> int:
        """How many positions can carry loss: a language model's last one has nothing to predict."""
        return len(self.ids) - (self.label is None)


@dataclass(frozen=True)
class Encoded:
    """An example, and what became of its record."""

    example: Example
    happened: tuple[str, ...] = ()  # keys of NOTES
    end: int | None = None  # of a query that is a chat: the token that ends an answer


NOTES = {
    "cut": "{n} of {total} sequences were longer than max_length and were cut to {max_length} tokens",
    "begun": "{n} of {total} texts begin with the beginning-of-sequence token already; it was not put there again",
    "ended": "{n} of {total} texts end with the end-of-sequence token already; it was not put there again",
    "started": "{n} of {total} texts have no prompt; the beginning-of-sequence token stands for it",
}


@dataclass(frozen=True)
class _Reading:
    """A record as one text with the characters that carry loss."""

    record: Mapping
    text: str
    spans: Sequence[Span] | None = None  # None: all tokens that have one before them
    complete: bool = False  # the text has its special tokens already
    end: bool = False  # the end-of-sequence token is a target too
    measured: bool = False  # a query: nothing comes after what is measured
    label: int | None = None

    @property
    def name(self) -> str:
        return f"record {self.record['id']!r}"


def encode(
    records: Sequence[dict],
    tokenizer,
    max_length: int,
    end: bool = True,
    classes: Mapping[str, int] | None = None,
    chat: Chat = DEFAULT_CHAT,
) -> list[Example]:
    """Tokenise records, as `stream` does, and print what was cut or there already."""
    encoded = list(stream(records, tokenizer, max_length, end, classes, chat))
    print_notes(Counter(note for one in encoded for note in one.happened), len(encoded), max_length)
    return [one.example for one in encoded]


def print_notes(counts: Mapping[str, int], total: int, max_length: int) -> None:
    """Say what happened to how many of `total` records."""
    for note, words in NOTES.items():
        if counts.get(note):
            print(words.format(n=counts[note], total=total, max_length=max_length))


def stream(
    records: Iterable[dict],
    tokenizer,
    max_length: int,
    end: bool = True,
    classes: Mapping[str, int] | None = None,
    chat: Chat = DEFAULT_CHAT,
) -> Iterator[Encoded]:
    """Tokenise records one after the other: `before prompt completion <eos>`, or `before text` for a classifier.

    `before` is what the tokenizer itself puts before a text, mostly `<bos>` or nothing. Prompt and
    completion are tokenised as one text; a token that has characters of both is a target.
    Chats are what their template writes, with no special token besides. A sequence over
    `max_length` tokens loses the beginning of its prompt, but not `before`, so that the targets
    stay; a text loses its end.

    Args:
        end: append the end-of-sequence token as a target (training data); a query's
            measurement leaves it out, unless its completion is empty.
        classes: a classifier's labels; None for a language model.
        chat: how records with `messages` are read.

    Raises:
        ForebearError: naming a record without any token to predict, with a label that the
            classifier does not know, or a chat that cannot be read.
    """
    convention, remaining = convention_of(tokenizer), iter(records)
    while chunk := list(islice(remaining, CHUNK)):
        if classes is None:
            readings = [_read(record, tokenizer, end, chat) for record in chunk]
        else:
            readings = [_read_labelled(record, tokenizer, classes, chat) for record in chunk]
        offsets = any(reading.spans for reading in readings)
        pieces = tokenise(tokenizer, [reading.text for reading in readings], offsets)
        for reading, tokens in zip(readings, pieces, strict=True):
            yield _encoded(reading, tokens, tokenizer, convention, max_length)


def _read(record: Mapping, tokenizer, end: bool, chat: Chat) -> _Reading:
    if "messages" in record:
        text, spans = chat_spans(record, tokenizer, chat, measured=not end)
        return _Reading(record, text, spans, complete=True, measured=not end)
    if "text" in record:
        return _Reading(record, record["text"], end=end)
    text, start = joined(tokenizer, record["prompt"], record["completion"])
    if record["completion"]:
        # What a tokenizer puts before the first word belongs to it where there is no prompt.
        return _Reading(record, text, [(start or -1, len(text))], end=end)
    if tokenizer.eos_token_id is None:
        raise ForebearError(
            f"record {record['id']!r}: its completion is empty, and the tokenizer has no end-of-sequence token that "
            "could be the answer; give it a completion."
        )
    return _Reading(record, text, [], end=True)


def _read_labelled(record: Mapping, tokenizer, classes: Mapping[str, int], chat: Chat) -> _Reading:
    if record.get("label") not in classes:
        raise ForebearError(
            f"record {record['id']!r}: its label is {record.get('label')!r}, but the classifier knows "
            f"{', '.join(map(repr, classes))}; correct it."
        )
    label = classes[record["label"]]
    if "messages" in record:
        return _Reading(record, rendered(record, tokenizer, chat), complete=True, label=label)
    text = record["text"] if "text" in record else joined(tokenizer, record["prompt"], record["completion"])[0]
    return _Reading(record, text, label=label)


def _encoded(reading: _Reading, pieces: Pieces, tokenizer, convention: Convention, max_length: int) -> Encoded:
    ids, happened = pieces.ids, []
    begun = _begun(ids, convention)
    before = [] if reading.complete or begun else convention.before
    if begun and convention.before and not reading.complete:
        happened.append("begun")
    if reading.label is not None:
        return _classified(reading, ids, before, happened, convention, max_length)
    targets = _targets(reading, pieces, tokenizer)
    if not before and not begun and reading.spans is not None and (not ids or targets[0]):
        before = _start(reading, convention)
        happened.append("started")
    after = [convention.end] if reading.end and convention.end is not None else []
    if after and reading.spans != [] and _ended(reading.text, ids, convention):
        after = []
        happened.append("ended")
    kept = len(before) or begun  # of the first tokens, whatever is cut
    targets = np.concatenate([np.zeros(len(before), bool), targets, np.ones(len(after), bool)])
    ids = np.array([*before, *ids, *after], np.int64)
    targets[: max(kept, 1)] = False
    follows = None
    if reading.measured and targets.any():
        last = _last(targets)
        follows = _answer_end(ids[last + 1 :].tolist(), ids[targets].tolist(), convention)
        ids, targets = ids[: last + 1], targets[: last + 1]
    if len(ids) > max_length:
        happened.append("cut")
        ids, targets = _cut(ids, targets, kept, max_length, reading.spans is None)
    if not targets.any():
        raise ForebearError(
            f"{reading.name} has no token to predict after tokenisation; remove it, lengthen it, or raise `max_length`."
        )
    first = int(targets.argmax())
    some = None if targets[first:].all() else torch.from_numpy(targets.copy())
    return Encoded(Example(torch.from_numpy(ids.copy()), first, targets=some), tuple(happened), follows)


def _classified(
    reading: _Reading, ids: list[int], before: list[int], happened: list[str], convention: Convention, max_length: int
) -> Encoded:
    """As the tokenizer itself writes a text: its class is read at the last token."""
    after = [] if reading.complete else convention.after
    whole = [*before, *ids, *after]
    if not whole:
        raise ForebearError(f"{reading.name} has no token whose class could be read; remove it, or lengthen it.")
    if len(whole) > max_length:
        happened = [*happened, "cut"]
        whole = [*[*before, *ids][: max_length - len(after)], *after]
    return Encoded(Example(torch.tensor(whole), len(whole), reading.label), tuple(happened))


def _targets(reading: _Reading, pieces: Pieces, tokenizer) -> np.ndarray:
    if reading.spans is None:
        return np.ones(len(pieces.ids), bool)
    return covering(tokenizer, reading.text, pieces, reading.spans)


def _begun(ids: Sequence[int], convention: Convention) -> int:
    """How many special tokens a text itself begins with that belong before it."""
    before = convention.before
    if before and list(ids[: len(before)]) == before:
        return len(before)
    return int(bool(ids) and ids[0] == convention.start)


def _ended(text: str, ids: Sequence[int], convention: Convention) -> bool:
    """Whether a text itself ends with the end token, whatever white space a template has put behind it."""
    return convention.end in ids and text.rstrip().endswith(convention.end_text)


def _start(reading: _Reading, convention: Convention) -> list[int]:
    if convention.start is None:
        raise ForebearError(
            f"{reading.name}: its answer begins with the first token, and the tokenizer has no beginning-of-sequence "
            "token that it could be predicted from; give it a prompt, or a `text`, whose first token is not predicted."
        )
    return [convention.start]


def _answer_end(following: Sequence[int], answer: Sequence[int], convention: Convention) -> int | None:
    """What follows a measured answer in its chat: a special token, else the next one, if the answer has none like it."""
    special = (token for token in following if token in convention.specials)
    return next(special, next((token for token in following[:1] if token not in answer), None))


def _last(targets: np.ndarray) -> int:
    return int(np.flatnonzero(targets)[-1])


def _cut(
    ids: np.ndarray, targets: np.ndarray, kept: int, max_length: int, is_text: bool
) -> tuple[np.ndarray, np.ndarray]:
    """At most `max_length` tokens: a text loses its end, others what is before their last run of targets.

    The first `kept` tokens stay, and something to predict the first target from.
    """
    if not is_text and targets.any():
        end = _last(targets) + 1
        start = end - int(targets[:end][::-1].argmin())  # ids[start:end] is the last run
        dropped = min(max(end - max_length, 0), max(start - max(kept, 1), 0))
        indices = np.r_[:kept, kept + dropped : end]
        ids, targets = ids[indices], targets[indices]
    return ids[:max_length], targets[:max_length]
