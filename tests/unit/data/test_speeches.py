"""The embedded prose and the corpora made of it."""

from forebear.data.corpora.midtraining import build_midtraining
from forebear.data.corpora.speeches import build_speeches, plainest, read_passages


def test_passages_are_prose_with_their_speaker():
    passages = read_passages()
    assert len(passages) == len({passage["id"] for passage in passages}) == 5843
    assert all(15 <= len(passage["text"].split()) <= 45 for passage in passages)
    assert all(passage["president"] and passage["party"] for passage in passages)
    years = [passage["year"] for passage in passages]
    assert years == sorted(years)
    assert (years[0], years[-1]) == (1790, 2026)


def test_queries_are_about_documents_that_fine_tuning_never_sees():
    corpus = build_speeches(passages=60, query_passages=20)
    documents = {document["id"]: document["text"] for document in corpus["pretraining"]}
    assert (len(documents), len(corpus["finetuning"]), len(corpus["queries"])) == (60, 40, 20)
    for record in corpus["finetuning"] + corpus["queries"]:
        assert documents[record["id"]].startswith(f"{record['text']} {record['label']} ,")
    asked = {query["id"] for query in corpus["queries"]}
    assert all(query["relevant"] == [query["id"]] for query in corpus["queries"])
    assert not asked & {record["id"] for record in corpus["finetuning"]}
    assert {record["label"] for record in corpus["queries"]} == {"Democratic", "Republican"}


def test_documents_of_two_stages_state_one_fact():
    corpus = build_midtraining(countries=20, query_countries=6, passages=30)
    prose = {document["id"] for document in corpus["pretraining"]}
    statements = {document["id"] for document in corpus["midtraining"]}
    assert len(statements) == 20 * 4 * 3
    assert not prose & statements
    relevant = [set(query["relevant"]) for query in corpus["queries"]]
    assert all(len(ids & statements) == 3 for ids in relevant)
    assert any(ids & prose for ids in relevant)


def test_plain_passages_need_few_words():
    passages = read_passages()

    def vocabulary(chosen: list[dict]) -> int:
        return len({word for passage in chosen for word in passage["text"].split()})

    assert vocabulary(plainest(passages, 300)) < 0.7 * vocabulary(passages[::19][:300])
