"""The embedded prose: short passages of the State of the Union addresses, 1790 to 2026.

The corpus `speeches` is made of it: pretraining teaches which words were whose and when,
fine-tuning replaces the head and teaches the *format* of naming the era of an excerpt; the
queries are excerpts of other passages, so what places them must have come through the chain.
"""

import csv
import random
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

ERAS = (("1790 to 1860", 1860), ("1861 to 1932", 1932), ("1933 to 2026", 2026))  # label, last year
CUE = "\u2014"  # what a speaker's name follows


def read_passages() -> list[dict]:
    """5,843 passages of 15 to 45 words, at most 25 an address, in order of time.

    Returns:
        Records with `id` (`{year}-{president's surname}-{address}/{passage}`), `text`,
        `year` (int), `president` and `party`.
    """
    with (files("forebear") / "data/speeches.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    counts: dict[str, int] = {}
    passages = []
    for row in rows:
        speech = row.pop("speech")
        counts[speech] = counts.get(speech, 0) + 1
        passages.append({"id": f"{speech}/{counts[speech]}", **row, "year": int(row["year"])})
    return passages


def plainest(passages: Sequence[dict], number: int) -> list[dict]:
    """The passages whose rarest word is the most frequent one, so that a small vocabulary is enough."""
    words = [set(re.findall(r"\w+", passage["text"])) for passage in passages]
    counts = Counter(word for of_passage in words for word in of_passage)
    rarest = [min(counts[word] for word in of_passage) for of_passage in words]
    order = sorted(range(len(passages)), key=lambda i: -rarest[i])
    return [passages[i] for i in order[:number]]


def build_speeches(
    passages: int = 300, query_passages: int = 100, excerpt: float = 0.8, seed: int = 0
) -> dict[str, list[dict]]:
    """The corpus as plain records: `pretraining`, `finetuning` and `queries`.

    Pretraining documents end in the speaker and the year. An excerpt is the beginning of a
    passage, and its label the era.

    Args:
        passages: how many pretraining documents, those of the plainest words.
        query_passages: of how many of them the queries are excerpts; fine-tuning sees those of the others.
        excerpt: fraction of a passage's words in its excerpt.
        seed: which passages are the queries', and the order of the documents.
    """
    chosen = plainest(read_passages(), passages)
    random.Random(seed).shuffle(chosen)
    documents = [
        {"id": p["id"], "text": f"{p['text']} {CUE} {p['president']} , {p['year']}", "president": p["president"]}
        for p in chosen
    ]
    excerpts = [_excerpt(passage, excerpt) for passage in chosen]
    queries = [{**e, "relevant": [e["id"]], "group": e["label"]} for e in excerpts[:query_passages]]
    return {"pretraining": documents, "finetuning": excerpts[query_passages:], "queries": queries}


def era(year: int) -> str:
    return next(label for label, last in ERAS if year <= last)


def _excerpt(passage: dict, fraction: float) -> dict:
    words = passage["text"].split()
    beginning = " ".join(words[: round(fraction * len(words))])
    return {"id": passage["id"], "text": f"{beginning} {CUE}", "label": era(passage["year"])}
