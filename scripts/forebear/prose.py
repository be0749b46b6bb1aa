"""The embedded corpus `prose`: passages of the State of the Union addresses, and continuations of others.

It is made for comparing estimators with an exact reference, not with retraining: every
passage is a candidate, and a query is the second half of a passage that was left out.
"""

import random

from forebear.speeches import plainest, read_passages


def build_prose(passages: int = 500, query_passages: int = 10, seed: int = 0) -> dict[str, list[dict]]:
    """The corpus as plain records: `pretraining` and `queries`.

    Args:
        passages: how many pretraining documents; with the queries', those of the plainest words.
        query_passages: how many queries, each from a passage of its own.
        seed: which passages are the queries', and the order of the documents.
    """
    chosen = plainest(read_passages(), passages + query_passages)
    random.Random(seed).shuffle(chosen)
    documents = [{"id": p["id"], "text": p["text"]} for p in chosen[query_passages:]]
    return {"pretraining": documents, "queries": [_continuation(p) for p in chosen[:query_passages]]}


def _continuation(passage: dict) -> dict:
    words = passage["text"].split()
    half = len(words) // 2
    return {"id": passage["id"], "prompt": " ".join(words[:half]), "completion": " ".join(words[half:])}
