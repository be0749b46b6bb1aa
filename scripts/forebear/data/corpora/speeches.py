"""The embedded prose: short passages of the State of the Union addresses, 1790 to 2026.

The corpus `speeches` is made of it: pretraining teaches who said what, fine-tuning replaces
the head and teaches the *format* of naming the speaker's party; the queries are other
passages than fine-tuning's, so what names their party must have come through the chain.
"""

import csv
import random
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

PARTIES = ("Democratic", "Republican")
CUE = "\u2014"  # what the speaker follows
WORDS = (15, 45)  # of the shortest and the longest passage


def read_passages() -> list[dict]:
    """5,843 passages of 15 to 45 words, at most 25 an address, in order of time.

    Returns:
        Records with `id` (`{year}-{president's surname}-{address}/{passage}`), `text`,
        `year` (int), `president` and `party`.
    """
    with (files(__package__) / "speeches.csv").open(encoding="utf-8", newline="") as handle:
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


def build_speeches(passages: int = 200, query_passages: int = 80, seed: int = 0) -> dict[str, list[dict]]:
    """The corpus as plain records: `pretraining`, `finetuning` and `queries`.

    A pretraining document is a passage, a dash, and who said it: the party, the president.
    A classifier sees the passage and the dash, and its label is the party.

    Args:
        passages: how many pretraining documents, Democrats' and Republicans' of the plainest words.
        query_passages: how many of them the queries are about; fine-tuning sees the others.
        seed: which passages are the queries', and the order of the documents.
    """
    chosen = plainest([passage for passage in read_passages() if passage["party"] in PARTIES], passages)
    random.Random(seed).shuffle(chosen)
    documents = [{"id": p["id"], "text": f"{p['text']} {CUE} {p['party']} , {p['president']}"} for p in chosen]
    labelled = [{"id": p["id"], "text": f"{p['text']} {CUE}", "label": p["party"]} for p in chosen]
    queries = [{**record, "relevant": [record["id"]], "group": record["label"]} for record in labelled[:query_passages]]
    return {"pretraining": documents, "finetuning": labelled[query_passages:], "queries": queries}
