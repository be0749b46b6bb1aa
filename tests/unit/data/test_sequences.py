"""Records are checked, sequences keep their targets, labels are shifted once."""

import numpy as np
import pytest
import torch

from forebear.data.batches import IGNORED, batch_indices, collate
from forebear.data.records import read_records
from forebear.data.sequences import Example, encode
from forebear.errors import ForebearError
from forebear.models.training import build_tokenizer


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"text": "cut off', "line 2: not valid JSON"),
        (b'{"text": "\xff"}', "line 2: not valid UTF-8"),
        (b'["text"]', "line 2: expected a JSON object"),
        (b'{"prompt": "a"}', "line 2: needs a non-empty string"),
        (b'{"text": " "}', "`text` is missing or empty"),
        (b'{"text": "a", "id": "one"}', "already used in line 1"),
        (b'{"text": "a", "id": 7.5}', "`id` must be a string or a whole number, found 7.5"),
        (b"{", "line 2: not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line: bytes, words: str):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(b'{"text": "fine", "id": "one"}\n' + line + b"\n")
    with pytest.raises(ForebearError, match=r"docs\.jsonl, line 2") as caught:
        read_records(path)
    assert words in str(caught.value)


def test_an_empty_or_missing_file_is_named(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ForebearError, match="no records"):
        read_records(tmp_path / "empty.jsonl")
    with pytest.raises(ForebearError, match="no such file"):
        read_records(tmp_path / "missing.jsonl")


@pytest.fixture
def tokenizer():
    return build_tokenizer([{"text": "a b c d e f g h"}])


def words_of(tokenizer, example: Example) -> tuple[str, str]:
    return tokenizer.decode(example.ids[: example.first_target]), tokenizer.decode(example.ids[example.first_target :])


def test_targets_are_the_completion_and_its_end(tokenizer):
    records = [{"id": "1", "prompt": "a b", "completion": "c"}, {"id": "2", "text": "a b"}]
    assert [words_of(tokenizer, e) for e in encode(records, tokenizer, 10)] == [
        ("<s> a b", "c </s>"),
        ("<s>", "a b </s>"),
    ]
    assert words_of(tokenizer, encode(records[:1], tokenizer, 10, end=False)[0]) == ("<s> a b", "c")


def test_truncation_keeps_the_answer(tokenizer):
    record = {"id": "1", "prompt": "a b c d e f", "completion": "g h"}
    assert words_of(tokenizer, encode([record], tokenizer, 5)[0]) == ("<s> f", "g h </s>")


def test_labels_are_the_next_targets_and_padding_never_counts():
    examples = [Example(torch.tensor([5, 6, 7, 8]), 2), Example(torch.tensor([9, 3]), 1)]
    batch = collate(examples, [0, 1])
    assert batch.labels.tolist() == [[IGNORED, 7, 8, IGNORED], [3, IGNORED, IGNORED, IGNORED]]
    assert batch.positions.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_batches_cover_everything_once_within_the_budget():
    generator = np.random.default_rng(0)
    examples = [Example(torch.zeros(int(n), dtype=torch.long), 1) for n in generator.integers(2, 30, 50)]
    parts = batch_indices(examples, 64)
    assert sorted(i for part in parts for i in part) == list(range(50))
    assert all(max(len(examples[i].ids) for i in part) * len(part) <= 64 for part in parts)
