"""Candidates that are the same for all rankers: facts of LAMA in T-REx, and neighbours of queries."""

import numpy as np
import pytest
import torch

from forebear.data.formats import as_record
from forebear.data.lama import Counts, choose_candidates, read_facts, read_sentences
from forebear.data.neighbours import with_neighbours
from forebear.data.records import read_records
from forebear.data.text_rankers import mean_token_states
from forebear.errors import ForebearError
from forebear.evaluation.ranking import candidate_mask, mean_average_precision, relevant_indices
from forebear.evaluation.table import evaluate_estimator
from forebear.models.checkpoints import load_encoder, load_tokenizer
from published import lama_and_trex, tiny_encoder


@pytest.fixture
def original(tmp_path):
    return lama_and_trex(tmp_path)


def test_facts_are_prompts_cut_before_the_object(original):
    facts = read_facts(original / "LAMA/TREx", original / "LAMA/relations.jsonl")
    assert [(f["prompt"], f["completion"], f["group"]) for f in facts] == [
        ("Ada was born in", " London", "P19"),
        ("Bob was born in", " Rome", "P19"),
        ("Cyd was born in", " London", "P19"),
    ]


def test_sentences_that_state_no_wanted_fact_are_left_out(original):
    sentences = read_sentences(original / "TREX", {("P19", "Q1", "Q100"), ("P19", "Q3", "Q100")})
    assert [s["text"] for s in sentences] == ["Ada was born in London.", "Cyd is a Londoner."]
    assert ("P21", "Q1", "Q7") in sentences[0]["facts"]


def chosen(original, **counts):
    facts = read_facts(original / "LAMA/TREx", original / "LAMA/relations.jsonl")
    sentences = read_sentences(original / "TREX", {fact["fact"] for fact in facts})
    none = {"random": 0, "bm25": 0, "same_object": 0}
    return choose_candidates(facts, sentences, Counts(queries=10, **{**none, **counts}), seed=0)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({}, [1, 1, 1]),  # what states the fact
        ({"same_object": 5}, [2, 1, 2]),  # London twice
        ({"random": 3}, [3, 3, 3]),
        ({"bm25": 2}, [2, 2, 2]),
    ],
)
def test_candidates_are_the_union_of_their_sources(original, counts, expected):
    queries, documents = chosen(original, **counts)
    assert [len(query["candidates"]) for query in queries] == expected
    for query in queries:
        assert set(query["relevant"]) <= set(query["candidates"])
    assert {name for query in queries for name in query["candidates"]} == {d["id"] for d in documents}


def test_data_sets_without_a_common_fact_are_refused(original):
    facts = read_facts(original / "LAMA/TREx", original / "LAMA/relations.jsonl")
    with pytest.raises(ForebearError, match="no fact in common"):
        choose_candidates(facts, [], Counts(), seed=0)


def test_only_candidates_are_ranked():
    documents = [{"id": name} for name in "abcd"]
    queries = [{"relevant": ["c"], "candidates": ["b", "c"]}, {"relevant": ["a"]}]
    mask, relevant = candidate_mask(documents, queries), relevant_indices(documents, queries)
    scores = np.array([[9.0, 1.0], [1.0, 4.0], [2.0, 3.0], [8.0, 2.0]])
    costs = [{"seconds": 1.0, "peak_bytes": 1}]
    row = evaluate_estimator({"only": scores}, None, relevant, costs, [], 0, mask)
    assert row["mrr"] == pytest.approx((1 / 1 + 1 / 4) / 2)  # "c" beats "b"; "a" and "d" are no candidates
    assert "lds" not in row
    assert candidate_mask(documents, [{}, {}]) is None


def test_mean_average_precision_by_hand():
    scores = np.array([[4.0], [3.0], [2.0], [1.0]])
    assert mean_average_precision(scores, [[0, 2]]) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_neighbours_do_not_depend_on_padding_and_the_relevant_ones_are_added(tmp_path):
    folder = tiny_encoder(tmp_path)
    model, tokenizer = load_encoder(folder), load_tokenizer(folder)
    texts = ["Rome", "The capital of Cuba is Havana .", "Which city ?"]
    together = mean_token_states(model, tokenizer, texts)
    alone = torch.cat([mean_token_states(model, tokenizer, [text]) for text in texts])
    torch.testing.assert_close(together, alone)
    pool = [{"id": name, "text": text} for name, text in zip("abc", texts, strict=True)]
    queries, documents = with_neighbours([{"id": "q", "relevant": ["c"]}], pool, together[1:2], together, 1)
    assert queries[0]["candidates"] == ["b", "c"]
    assert documents == pool[1:]


def test_lines_of_xp3_and_dolly_become_prompts_and_completions(tmp_path):
    line = {"instruction": "Name it.", "context": "A city.", "response": "Rome", "category": "closed_qa"}
    record = as_record(line)
    assert record["prompt"].endswith("### Instruction:\nName it.\n\nInput:\nA city.\n\n### Response:\n")
    assert record["completion"] == "Rome\n\n### End"
    assert record["category"] == "closed_qa"
    assert "Input:" not in as_record({**line, "context": ""})["prompt"]
    path = tmp_path / "xp3.jsonl"
    path.write_text('{"inputs": "1 + 1 =", "targets": "2"}\n' * 3)
    assert read_records(path, limit=2) == [
        {"prompt": "1 + 1 =", "completion": " 2", "id": "1"},
        {"prompt": "1 + 1 =", "completion": " 2", "id": "2"},
    ]
