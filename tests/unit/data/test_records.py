"""Lines of files as records: numbers as ids, half characters, values that are not there."""

import json
from pathlib import Path

import pytest

from forebear.data.records import check_record, classes_of, read_jsonl, read_records, record_key, write_records
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.evaluation.ranking import candidate_mask, relevant_indices, unknown_names
from forebear.models.heads import with_head
from forebear.models.training import build_model, build_tokenizer


def written(path: Path, *lines: dict) -> Path:
    """JSON lines as json.dumps writes them: whatever is not ASCII is escaped."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="ascii")
    return path


@pytest.mark.parametrize(("given", "name"), [(3, 3), ("3", 3), (3, "3")])
def test_numbers_name_documents(tmp_path, given: int | str, name: int | str):
    documents = read_records(written(tmp_path / "d.jsonl", {"text": "a"}, {"text": "b", "id": given}))
    query = {"prompt": "a", "completion": "b", "relevant": [name], "candidates": [name, 1]}
    queries = read_records(written(tmp_path / "q.jsonl", query, {**query, "relevant": name}))
    assert relevant_indices(documents, queries) == [[1], [1]]
    assert candidate_mask(documents, queries).all()
    assert unknown_names(documents, queries) is None
    write_records(tmp_path / "again.jsonl", queries)
    assert read_records(tmp_path / "again.jsonl") == queries


def test_a_name_given_twice_counts_once():
    assert check_record({"text": "a", "relevant": [3, "3", 4]}, "here")["relevant"] == ["3", "4"]


def test_the_same_number_and_string_are_one_id(tmp_path):
    with pytest.raises(ForebearError, match=r"line 2: the id '3' was already used in line 1"):
        read_records(written(tmp_path / "d.jsonl", {"text": "a", "id": 3}, {"text": "b", "id": "3"}))


@pytest.mark.parametrize("key", ["id", "relevant", "candidates", "label"])
@pytest.mark.parametrize("value", [1.5, ["a"], {"a": 1}])
def test_other_values_are_no_names(key: str, value: object):
    value = [[value]] if key in ("relevant", "candidates") and isinstance(value, list) else value
    with pytest.raises(ForebearError, match=f"here: `{key}` must be a string or a whole number, found "):
        check_record({"text": "a", key: value}, "here")


def test_labels_may_be_numbers_or_truths():
    records = [check_record({"id": k, "text": "a b", "label": label}, "here") for k, label in enumerate([0, 1, True])]
    assert classes_of(records) == ["0", "1", "true"]
    tokenizer = build_tokenizer(records)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = build_model({"model_type": "gpt_neox", **sizes}, tokenizer, 0)
    classifier = with_head(model, "classification", classes_of(records), 0)
    assert [e.label for e in encode(records, tokenizer, 8, classes=classifier.config.label2id)] == [0, 1, 2]


def test_what_is_null_is_not_there():
    line = {"text": "a", "id": None, "relevant": None, "messages": None, "label": None, "conversations": None}
    assert check_record(line, "here") == {"text": "a"}
    with pytest.raises(ForebearError, match=r"here: needs .*`text`.*`completion` is missing"):
        check_record({"prompt": "a", "completion": None}, "here")


def test_relevant_documents_that_are_not_there_are_told():
    documents = [{"id": "a"}, {"id": "b"}]
    queries = [{"id": "q", "relevant": ["a", "x"]}, {"id": "r", "relevant": ["y"]}, {"id": "s"}]
    sentence = unknown_names(documents, queries)
    assert sentence.startswith("warning: 2 of 3 ids in `relevant` are no scored document's (such as x, y)")
    assert sentence.endswith("leave out the queries of which none is: r")


HALF = '{"id": "\\ud83d", "text": "half \\ud83d here \\ude00, whole \\ud83e\\udd9c", "relevant": ["\\udc00"]}\n'


def test_half_a_character_is_replaced_and_told(tmp_path, capsys):
    path = tmp_path / "scraped.jsonl"
    path.write_text(HALF + '{"text": "fine \\u00e9"}\n', encoding="ascii")
    half, fine = read_records(path)
    assert half == {"id": "�", "text": "half � here �, whole 🦜", "relevant": ["�"]}
    assert fine["text"] == "fine é"
    assert f"{path}: half a character (a lone surrogate such as \\ud83d) in 1 of its lines" in capsys.readouterr().out
    write_records(tmp_path / "out.jsonl", [half, fine])
    assert read_jsonl(tmp_path / "out.jsonl") == [half, fine]
    assert len(record_key(half)) == 64
    assert encode([half, fine], build_tokenizer([half, fine]), 16)


def test_half_a_character_in_a_chat_is_replaced_too(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a\\ud83d"}, {"role": "assistant", "content": "b"}]}\n')
    (record,) = read_records(path)
    assert record["messages"][0]["content"] == "a�"


def test_empty_prompts_and_completions_are_read_and_empty_texts_are_not(tmp_path):
    lines = [{"prompt": "", "completion": "a"}, {"prompt": "a", "completion": ""}, {"prompt": "a", "completion": "\n"}]
    assert len(read_records(written(tmp_path / "q.jsonl", *lines))) == 3
    for text in ("", " \n"):
        with pytest.raises(ForebearError, match=r"line 1: needs a non-empty string `text`.*`text` is missing or empty"):
            read_records(written(tmp_path / "d.jsonl", {"text": text}))
