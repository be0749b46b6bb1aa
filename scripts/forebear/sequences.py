"""Records → token sequences with their targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forebear.errors import ForebearError
from forebear.records import full_text


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
