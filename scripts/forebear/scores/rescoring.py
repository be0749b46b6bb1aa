"""Scores of compressed queries, of which the outermost are computed again from whole ones."""

from collections.abc import Callable, Mapping

import numpy as np


def outermost(scores: np.ndarray, number: int) -> np.ndarray:
    """Indices, ascending, of the documents whose score is among the `number` highest or lowest for any query.

    Args:
        scores: [N, Q]; a query that was left out has a column of NaN.
    """
    ranked = np.argsort(scores[:, ~np.isnan(scores).any(0)], axis=0, kind="stable")
    return np.union1d(ranked[:number], ranked[-number:])


def rescore(
    compressed: Mapping[str, np.ndarray],
    number: int,
    score: Callable[[np.ndarray], Mapping[str, np.ndarray]],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Replace scores by exact ones until the `number` highest and lowest for every query are exact.

    With its exact score a document may leave them, and another one follows; so it goes on until
    none does, each time with twice as many of either end, as a round may be a pass for each of
    many partitions. All scores of a document are replaced together.

    Args:
        compressed: estimator → [N, Q] scores of compressed queries; there may be none.
        score: called with the indices, ascending, of all documents chosen so far; returns
            estimator → [N, Q], of which the rows of these documents are read.

    Returns:
        estimator → [N, Q], and of which documents [N] bool they are exact.
    """
    scores, chosen, depth = dict(compressed), np.array([], int), number
    documents = len(next(iter(compressed.values()), ()))
    while not all(np.isin(outermost(matrix, number), chosen).all() for matrix in scores.values()):
        chosen = np.unique(np.concatenate([chosen, *(outermost(matrix, depth) for matrix in scores.values())]))
        print(f"{len(chosen)} documents are scored with whole queries", flush=True)
        found = score(chosen)
        for name, matrix in scores.items():
            scores[name] = matrix.copy()
            scores[name][chosen] = found[name][chosen]
        depth *= 2
    return scores, np.isin(np.arange(documents), chosen)
