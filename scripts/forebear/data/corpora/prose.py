"""The corpus `prose`: passages of the State of the Union addresses or of a file, and continuations of others.

It is made for comparing estimators with an exact reference, not with retraining: every
passage is a candidate, and a query is the second half of a passage that was left out.
"""

import random
from pathlib import Path

from forebear.data.corpora.speeches import WORDS, plainest, read_passages
from forebear.data.records import read_records
from forebear.errors import ForebearError


def build_prose(
    passages: int = 500, query_passages: int = 10, file: str | Path | None = None, seed: int = 0
) -> dict[str, list[dict]]:
    """The corpus as plain records: `pretraining` and `queries`.

    Args:
        passages: how many pretraining documents; with the queries', those of the plainest words.
        query_passages: how many queries, each from a passage of its own.
        file: records with `text`, in place of the embedded passages; those as long as these count.
        seed: which passages are the queries', and the order of the documents.

    Raises:
        ForebearError: the file has too few passages.
    """
    wanted = passages + query_passages
    chosen = plainest(_passages_of(file) if file else read_passages(), wanted)
    if len(chosen) < wanted:
        raise ForebearError(
            f"{file}: has {len(chosen)} passages of {WORDS[0]} to {WORDS[1]} words, but the corpus takes {wanted}; "
            "lower `passages` or `query_passages`."
        )
    random.Random(seed).shuffle(chosen)
    documents = [{"id": p["id"], "text": p["text"]} for p in chosen[query_passages:]]
    return {"pretraining": documents, "queries": [_continuation(p) for p in chosen[:query_passages]]}


def _passages_of(file: str | Path) -> list[dict]:
    low, high = WORDS
    return [record for record in read_records(file) if low <= len(record.get("text", "").split()) <= high]


def _continuation(passage: dict) -> dict:
    words = passage["text"].split()
    half = len(words) // 2
    return {"id": passage["id"], "prompt": " ".join(words[:half]), "completion": " ".join(words[half:])}
