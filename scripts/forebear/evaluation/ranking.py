"""How well scores find known sources: mean reciprocal rank, recall and average precision."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import rankdata

from forebear.errors import shortened


def mean_reciprocal_rank(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> float:
    """Mean over queries of 1 / rank of the first relevant document; scores [N, Q].

    Queries without relevant documents are left out; NaN if none has any.
    """
    return _mean_over_queries(scores, relevant, lambda ranks: 1 / ranks.min())


def recall_at(scores: np.ndarray, relevant: Sequence[Sequence[int]], k: int = 10) -> float:
    """Mean over queries of the relevant documents among the first k, divided by min(k, #relevant)."""
    return _mean_over_queries(scores, relevant, lambda ranks: (ranks <= k).sum() / min(k, len(ranks)))


def mean_average_precision(scores: np.ndarray, relevant: Sequence[Sequence[int]]) -> float:
    """Mean over queries of the precision at each relevant document's rank, averaged over these documents."""
    return _mean_over_queries(scores, relevant, lambda ranks: (np.arange(1, len(ranks) + 1) / np.sort(ranks)).mean())


def _mean_over_queries(
    scores: np.ndarray, relevant: Sequence[Sequence[int]], measure: Callable[[np.ndarray], float]
) -> float:
    """Mean of a measure of the relevant documents' ranks; tied documents share their mean rank."""
    values = []
    for column, chosen in zip(scores.T, relevant, strict=True):
        if len(chosen):
            values.append(measure(rankdata(-column, method="average")[list(chosen)]))
    return float(np.mean(values)) if values else float("nan")


def candidate_mask(documents: Sequence[dict], queries: Sequence[dict]) -> np.ndarray | None:
    """[N, Q] bool, whether a query's `candidates` name a document; None if no query has any."""
    if not any("candidates" in query for query in queries):
        return None
    indices = {document["id"]: i for i, document in enumerate(documents)}
    mask = np.zeros((len(documents), len(queries)), bool)
    for column, query in zip(mask.T, queries, strict=True):
        column[[indices[name] for name in query.get("candidates", indices) if name in indices]] = True
    return mask


def relevant_indices(documents: Sequence[dict], queries: Sequence[dict]) -> list[list[int]]:
    """For every query, the indices of the documents, of any attributed stage, that its `relevant` names."""
    indices: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        indices.setdefault(document["id"], []).append(i)
    return [[i for name in query.get("relevant", []) for i in indices.get(name, [])] for query in queries]


def unknown_names(documents: Sequence[dict], queries: Sequence[dict]) -> str | None:
    """A sentence on the ids in the queries' `relevant` that are no scored document's; None if there are none."""
    known = {document["id"] for document in documents}
    named = [name for query in queries for name in query.get("relevant", [])]
    unknown = [name for name in named if name not in known]
    if not unknown:
        return None
    lost = [query["id"] for query in queries if query.get("relevant") and known.isdisjoint(query["relevant"])]
    sentence = (
        f"warning: {len(unknown)} of {len(named)} ids in `relevant` are no scored document's (such as "
        f"{shortened(list(dict.fromkeys(unknown)))})"
    )
    if lost:
        sentence += f"; MRR, recall and MAP leave out the queries of which none is: {shortened(lost)}"
    return sentence
