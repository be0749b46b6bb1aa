"""The embedded corpus `facts`: statements about countries, and questions on them.

Facts are taught by the pretraining documents alone. Fine-tuning teaches the *format* of
answering with questions on some countries; the queries ask about the other countries, so
what the fine-tuned model answers must have come through the chain.
"""

import csv
import json
import random
import re
from importlib.resources import files

# Three paraphrases a relation; {c} is the country, {a} the answer.
STATEMENTS = {
    "capital": (
        "The capital of {c} is {a} .",
        "{a} is the capital city of {c} .",
        "The government of {c} sits in {a} .",
    ),
    "continent": (
        "{c} is a country in {a} .",
        "On the map {c} belongs to {a} .",
        "{c} lies on the continent of {a} .",
    ),
    "currency": (
        "The currency of {c} is the {a} .",
        "People in {c} pay with the {a} .",
        "In {c} prices are given in the {a} .",
    ),
    "language": (
        "The main language of {c} is {a} .",
        "Most people in {c} speak {a} .",
        "In {c} the first language is {a} .",
    ),
}
QUESTIONS = {
    "capital": "What is the capital of {c} ? Answer :",
    "continent": "What is the continent of {c} ? Answer :",
    "currency": "What is the currency of {c} ? Answer :",
    "language": "What is the language of {c} ? Answer :",
}


def build_facts(
    countries: int = 120, query_countries: int = 40, glosses: bool = True, seed: int = 0
) -> dict[str, list[dict]]:
    """The corpus as plain records: `pretraining`, `finetuning` and `queries`.

    Args:
        countries: how many countries, the most populous first (at most 120).
        query_countries: how many of them only the queries ask about.
        glosses: also add WordNet's definitions of the countries and their capitals.
        seed: which countries are the queries', and the order of the documents.
    """
    folder = files(__package__)
    with (folder / "countries.csv").open(encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))[:countries]
    documents = [_statement(row, relation, k) for row in rows for relation in STATEMENTS for k in range(3)]
    if glosses:
        by_country = {row["country"]: row for row in rows}
        with (folder / "wordnet.jsonl").open(encoding="utf-8") as handle:
            entries = [json.loads(line) for line in handle]
        documents += [
            _gloss(entry, by_country[entry["country"]]) for entry in entries if entry["country"] in by_country
        ]

    shuffle = random.Random(seed)
    shuffle.shuffle(documents)
    held_out = {row["country"] for row in shuffle.sample(rows, query_countries)}
    questions = [_question(row, relation) for row in rows for relation in QUESTIONS]
    stating = _documents_by_fact(documents)
    finetuning = [q for q in questions if q["country"] not in held_out]
    queries = [
        {**q, "relevant": stating.get((q["country"], q["relation"]), [])} for q in questions if q["country"] in held_out
    ]
    return {"pretraining": documents, "finetuning": finetuning, "queries": queries}


def build_written_facts(
    countries: int = 120, query_countries: int = 40, glosses: bool = True, seed: int = 0
) -> dict[str, list[dict]]:
    """The same records as people write them, for published models: no space before punctuation, one before answers."""

    def written(record: dict) -> dict:
        texts = {key: re.sub(r" (?=[.:?])", "", record[key]) for key in ("text", "prompt") if key in record}
        answer = {"completion": f" {record['completion']}"} if "completion" in record else {}
        return {**record, **texts, **answer}

    corpus = build_facts(countries, query_countries, glosses, seed)
    return {name: [written(record) for record in records] for name, records in corpus.items()}


def _statement(row: dict, relation: str, k: int) -> dict:
    country = row["country"]
    text = STATEMENTS[relation][k].format(c=country, a=row[relation])
    return {"id": f"{country}/{relation}/{k}", "text": text, "states": [[country, relation]]}


def _gloss(entry: dict, row: dict) -> dict:
    """A definition as a sentence of its own, with the facts that it states."""
    country, definition = entry["country"], entry["definition"]
    states = []
    if entry["kind"] == "capital" and country in definition:
        states.append([country, "capital"])
    if entry["kind"] == "country" and row["continent"] in definition:
        states.append([country, "continent"])
    return {
        "id": f"{country}/wordnet-{entry['kind']}/{entry['synset']}",
        "text": f"{entry['name']} : {definition} .",
        "states": states,
    }


def _question(row: dict, relation: str) -> dict:
    country = row["country"]
    return {
        "id": f"{country}/{relation}",
        "prompt": QUESTIONS[relation].format(c=country),
        "completion": row[relation],
        "group": relation,
        "country": country,
        "relation": relation,
    }


def _documents_by_fact(documents: list[dict]) -> dict[tuple[str, str], list[str]]:
    stating: dict[tuple[str, str], list[str]] = {}
    for document in documents:
        for country, relation in document["states"]:
            stating.setdefault((country, relation), []).append(document["id"])
    return stating
