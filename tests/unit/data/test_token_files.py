"""Tokens in a mapped file are those of the list that `encode` makes, and are made again when anything else is there."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from forebear.data.batches import batch_indices, collate, number_of_positions
from forebear.data.records import Records, StagedRecords, read_records, write_records
from forebear.data.sequences import encode
from forebear.data.token_files import lengths_of, open_sequences, read_sequences
from forebear.errors import ForebearError
from forebear.models.losses import evaluate_losses
from forebear.models.training import build_model, build_tokenizer

WORDS = [f"w{k}" for k in range(60)]
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {{ eos_token }} {% endfor %}"


def text(generator: np.random.Generator, low: int = 1, high: int = 30) -> str:
    return " ".join(generator.choice(WORDS, generator.integers(low, high)))


@pytest.fixture
def tokenizer():
    tokenizer = build_tokenizer([{"text": " ".join([*WORDS, "user", "assistant"])}])
    tokenizer.chat_template = CHAT
    return tokenizer


def mixed(count: int = 60) -> list[dict]:
    """Texts, pairs and chats, whose answers lie apart."""
    generator, records = np.random.default_rng(0), []
    for k in range(count):
        turns = [{"role": ("user", "assistant")[i % 2], "content": text(generator, 1, 9)} for i in range(4)]
        kinds = (
            {"text": text(generator)},
            {"prompt": text(generator), "completion": text(generator)},
            {"messages": turns},
        )
        records.append({"id": str(k), **kinds[k % 3]})
    return records


@pytest.fixture
def prepared(tmp_path) -> Path:
    write_records(tmp_path / "pretraining.jsonl", mixed())
    return tmp_path / "pretraining.jsonl"


def same(first, second) -> bool:
    targets = (first.targets, second.targets)
    return (
        torch.equal(first.ids, second.ids)
        and (first.first_target, first.label) == (second.first_target, second.label)
        and (targets == (None, None) or torch.equal(*targets))
    )


def mapped(prepared: Path) -> list[str]:
    return sorted(file.name for file in (prepared.parent / "tokens").iterdir())


@pytest.mark.parametrize("end", [True, False])
def test_mapped_examples_are_those_in_memory(prepared, tokenizer, end: bool):
    expected = encode(read_records(prepared), tokenizer, 24, end)
    assert any(example.targets is not None for example in expected) == end  # of a query the last answer alone counts
    found = open_sequences(prepared, tokenizer, 24, end, small=0)
    assert isinstance(found.ids, np.memmap)
    assert len(found) == len(expected)
    assert all(map(same, found, expected))
    assert all(map(same, found[3:-2:5], expected[3:-2:5]))
    assert same(found[-1], expected[-1])
    with pytest.raises(IndexError):
        found[len(found)]


def test_a_classifier_s_classes_are_kept(tmp_path, tokenizer):
    records = [{"id": str(k), "text": f"w{k} w1", "label": "ab"[k % 2]} for k in range(9)]
    write_records(tmp_path / "labelled.jsonl", records)
    options = (tokenizer, 24, True, {"a": 0, "b": 1})
    assert all(map(same, open_sequences(tmp_path / "labelled.jsonl", *options, small=0), encode(records, *options)))


def test_passes_over_mapped_examples_are_those_over_examples_in_memory(prepared, tokenizer):
    listed = encode(read_records(prepared), tokenizer, 24)
    found = open_sequences(prepared, tokenizer, 24, small=0)
    assert lengths_of(found).tolist() == lengths_of(listed).tolist() == [len(example.ids) for example in listed]
    some = [2, 5, 7, 30, 31]
    assert batch_indices(found, 100, some) == batch_indices(listed, 100, some)
    assert number_of_positions(found) == number_of_positions(listed) == sum(e.positions for e in listed)
    assert number_of_positions(found, some) == sum(listed[i].positions for i in some)
    batch, expected = collate(found, some), collate(listed, some)
    assert torch.equal(batch.ids, expected.ids)
    assert torch.equal(batch.labels, expected.labels)
    assert torch.equal(batch.positions, expected.positions)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = build_model({"model_type": "gpt_neox", **sizes}, tokenizer, 0)
    chosen = np.array([1, 4, 33, 59])
    alone = torch.cat([evaluate_losses(model, [listed[i]]) for i in chosen])
    torch.testing.assert_close(evaluate_losses(model, found, chosen, batch_tokens=50), alone)
    assert torch.equal(evaluate_losses(model, found), evaluate_losses(model, listed))


def test_tokens_are_made_once(prepared, tokenizer, capsys, monkeypatch):
    open_sequences(prepared, tokenizer, 16, small=0)
    said = capsys.readouterr().out
    assert "were cut to 16 tokens" in said
    monkeypatch.setattr("forebear.data.token_files.stream", None)  # nothing is tokenised any more
    open_sequences(prepared, tokenizer, 16, small=0)
    assert capsys.readouterr().out == said


def test_a_small_data_set_has_no_file(prepared, tokenizer):
    assert isinstance(open_sequences(prepared, tokenizer, 24), list)
    assert not (prepared.parent / "tokens").exists()


@pytest.mark.parametrize(
    "damage", ["cut tokens", "changed tokens", "cut index", "changed index", "no tokens", "no index"]
)
def test_a_damaged_file_is_made_again(prepared, tokenizer, damage: str):
    expected = list(open_sequences(prepared, tokenizer, 24, small=0))
    index, tokens = sorted((prepared.parent / "tokens").iterdir())
    what, file = damage.split()[0], index if damage.endswith("index") else tokens
    content = file.read_bytes()
    if what == "no":
        file.unlink()
    elif what == "cut":
        file.write_bytes(content[:-40])
    else:
        place = len(content) // 2
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert read_sequences(index) is None
    assert all(map(same, open_sequences(prepared, tokenizer, 24, small=0), expected))
    assert read_sequences(index) is not None


def test_whatever_tokens_depend_on_makes_other_ones(prepared, tokenizer):
    open_sequences(prepared, tokenizer, 24, small=0)
    open_sequences(prepared, tokenizer, 23, small=0)
    open_sequences(prepared, tokenizer, 24, end=False, small=0)
    other = build_tokenizer([{"text": " ".join([*WORDS, *WORDS[30:], "user", "assistant"])}])
    other.chat_template = CHAT
    found = open_sequences(prepared, other, 24, small=0)
    assert all(map(same, found, encode(read_records(prepared), other, 24)))
    tokenizer.chat_template = CHAT.replace("{{ eos_token }}", "")
    found = open_sequences(prepared, tokenizer, 24, small=0)
    assert all(map(same, found, encode(read_records(prepared), tokenizer, 24)))
    assert len(mapped(prepared)) == 2 * 5


def test_tokens_of_what_a_file_contained_before_are_removed(prepared, tokenizer):
    write_records(prepared.with_name("pretraining.more.jsonl"), mixed(20))
    others = open_sequences(prepared.with_name("pretraining.more.jsonl"), tokenizer, 24, small=0)
    open_sequences(prepared, tokenizer, 24, small=0)
    first = mapped(prepared)
    write_records(prepared, mixed(30))
    found = open_sequences(prepared, tokenizer, 24, small=0)
    assert len(found) == 30
    assert len(mapped(prepared)) == len(first) == 4
    assert mapped(prepared) != first
    assert len(open_sequences(prepared.with_name("pretraining.more.jsonl"), tokenizer, 24, small=0)) == len(others)


def test_a_record_that_cannot_be_tokenised_leaves_no_file(prepared, tokenizer):
    write_records(prepared, [*mixed(5), {"id": "unlabelled", "text": "w1"}])
    with pytest.raises(ForebearError, match="record '0': its label is None"):
        open_sequences(prepared, tokenizer, 24, classes={"a": 0}, small=0)
    assert mapped(prepared) == []


def test_jobs_that_make_it_at_the_same_time_do_not_disturb_each_other(prepared, tokenizer):
    expected = encode(read_records(prepared), tokenizer, 24)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_sequences(prepared, tokenizer, 24, small=0), range(4)))
    assert all(all(map(same, examples, expected)) for examples in found)
    assert len(mapped(prepared)) == 2


def test_records_are_parsed_when_they_are_looked_at(prepared):
    expected, records = mixed(), Records(prepared)
    assert len(records) == len(expected)
    assert list(records) == expected
    assert [records[0], records[-1], *records[3:9:2]] == [expected[0], expected[-1], *expected[3:9:2]]
    with pytest.raises(IndexError):
        records[60]
    lines = prepared.read_text().splitlines(keepends=True)
    prepared.write_text("".join([lines[0], lines[1][:-5] + "\n", *lines[2:]]))
    damaged = Records(prepared)
    assert damaged[2] == expected[2]
    for look in (lambda: damaged[1], lambda: list(damaged)):
        with pytest.raises(ForebearError, match=r"pretraining\.jsonl, line 2: not what was written there"):
            look()


def test_records_of_several_stages_are_one_collection(prepared):
    expected = [{**record, "stage": "one"} for record in mixed()] + [{**mixed(1)[0], "stage": "two"}]
    write_records(prepared.with_name("two.jsonl"), mixed(1))
    stages = StagedRecords({"one": Records(prepared), "two": Records(prepared.with_name("two.jsonl"))})
    assert list(stages) == [stages[i] for i in range(len(stages))] == expected
    assert json.loads(json.dumps(stages[-1])) == expected[-1]
