"""Text → tokens, which of them stand for chosen characters, and the special tokens around a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers.models import WordLevel

Span = tuple[int, int]  # characters [start, end) of a text


@dataclass(frozen=True)
class Pieces:
    """A text's tokens, no special ones added."""

    ids: list[int]
    offsets: np.ndarray | None  # [T, 2] the characters that each stands for; None where the tokenizer has none


@dataclass(frozen=True)
class Convention:
    """Which special tokens stand around a text."""

    before: list[int]
    after: list[int]  # put there by the tokenizer itself; a training document ends with `end`
    start: int | None  # what a text without anything before it can be predicted from
    end: int | None
    end_text: str | None
    specials: frozenset[int]


def tokenise(tokenizer, texts: Sequence[str], offsets: bool = True) -> list[Pieces]:
    """Tokens of several texts; offsets only if they are wanted and the tokenizer has them."""
    offsets = offsets and tokenizer.is_fast
    options = {"return_offsets_mapping": True} if offsets else {}
    found = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, **options
    )
    if not offsets:
        return [Pieces(ids, None) for ids in found["input_ids"]]
    pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [Pieces(ids, np.array(spans, np.int64).reshape(-1, 2)) for ids, spans in pairs]


def convention_of(tokenizer) -> Convention:
    """What the tokenizer itself puts around a text, found by looking.

    One that leaves it open, but has a beginning-of-sequence token that is no end token too,
    puts that before.
    """
    (plain,) = tokenise(tokenizer, ["a"], offsets=False)
    whole = list(tokenizer("a")["input_ids"])
    starts = range(len(whole) - len(plain.ids) + 1)
    begin = next((i for i in starts if whole[i : i + len(plain.ids)] == plain.ids), 0)
    before, after = whole[:begin], whole[begin + len(plain.ids) :]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if not whole[:begin] and bos is not None and bos != eos and _leaves_open(tokenizer):
        before = [bos]
    start = bos if bos is not None else before[-1] if before else None
    return Convention(before, after, start, eos, tokenizer.eos_token, frozenset(tokenizer.all_special_ids))


def _leaves_open(tokenizer) -> bool:
    """Whether a tokenizer that puts nothing before a text does not say that nothing belongs there."""
    if "add_bos_token" in getattr(tokenizer, "init_kwargs", {}):
        return False
    if not tokenizer.is_fast:
        return getattr(tokenizer, "special_tokens_pattern", None) is None
    processor = tokenizer.backend_tokenizer.post_processor  # transformers sets an empty template where there is none
    return processor is None or type(processor).__name__ == "TemplateProcessing"


def joined(tokenizer, prompt: str, completion: str) -> tuple[str, int]:
    """The text that a prompt and its completion make, and where the completion begins.

    Tokens of a tokenizer of whole words never cross the boundary, so a space keeps the two
    apart there: it is no token.
    """
    apart = prompt and completion and not (prompt[-1].isspace() or completion[0].isspace())
    if apart and tokenizer.is_fast and isinstance(tokenizer.backend_tokenizer.model, WordLevel):
        prompt += " "
    return prompt + completion, len(prompt)


def covering(tokenizer, text: str, pieces: Pieces, spans: Sequence[Span]) -> np.ndarray:
    """[T] bool: the tokens that stand for at least one character of any span.

    Without offsets, or with ones that do not reach the text's end, the tokens of the text up
    to each span's start and end are compared with those of the whole: what is the same in
    both is before that place, what is merged across it belongs to the span.
    """
    if pieces.offsets is None or not _reach(pieces.offsets, len(text.rstrip())):
        return _covering_by_beginnings(tokenizer, text, pieces.ids, spans)
    starts, ends = pieces.offsets.T
    reached = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]])
    starts = np.where(starts < ends, starts, np.minimum(starts, reached))  # white space may be trimmed off a token
    chosen = np.zeros(len(pieces.ids), bool)
    for first, last in spans:
        chosen |= (starts < last) & (ends > first)
    return chosen


def _reach(offsets: np.ndarray, end: int) -> bool:
    ends = offsets[:, 1]
    return len(ends) == 0 or bool(ends[-1] >= end and (np.diff(ends) >= 0).all())


def _covering_by_beginnings(tokenizer, text: str, ids: list[int], spans: Sequence[Span]) -> np.ndarray:
    chosen = np.zeros(len(ids), bool)
    for first, last in spans:
        before, upto = tokenise(tokenizer, [text[: max(first, 0)], text[:last]], offsets=False)
        end = _shared(ids, upto.ids)
        chosen[_shared(ids, before.ids) : end + (end < len(upto.ids))] = True
    return chosen


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
