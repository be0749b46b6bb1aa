"""One row of the comparison: an estimator's LDS, retrieval and cost."""

from collections.abc import Mapping, Sequence

import numpy as np

from forebear.evaluation.lds import (
    _nanmean,
    document_effects,
    mean_with_interval,
    rank_correlations,
    subset_predictions,
)
from forebear.evaluation.ranking import mean_average_precision, mean_reciprocal_rank, recall_at
from forebear.ground_truth.bank import Bank


def evaluate_estimator(
    scores: Mapping[str, np.ndarray],
    bank: Bank | None,
    relevant: Sequence[Sequence[int]],
    costs: Sequence[Mapping],
    overhead: Sequence[Mapping],
    seed: int,
    candidates: np.ndarray | None = None,
) -> dict[str, float]:
    """One row of the evaluation table; queries that were left out of the scores (NaN) are left out of it.

    Args:
        scores: attributed stage → [N_s, Q], the stages in the order of the bank's documents.
        bank: without one there is no LDS.
        costs: attributes of the scores' files: `seconds`, `peak_bytes`, and for rankers
            with preparations of their own `overhead_seconds`.
        overhead: attributes of the other files that the scores needed.
        candidates: [Σ N_s, Q] bool, the documents that are ranked for each query; all by default.
    """
    scored = ~np.isnan(next(iter(scores.values()))).all(0)
    scores = {stage: matrix[:, scored] for stage, matrix in scores.items()}
    relevant = [chosen for chosen, kept in zip(relevant, scored, strict=True) if kept]
    effects = document_effects(scores)
    ranked = effects if candidates is None else np.where(candidates[:, scored], effects, -np.inf)
    scoring_seconds = sum(part["seconds"] for part in costs)
    return {
        **(_lds(scores, effects, bank.with_seed(seed).of_queries(scored), seed) if bank else {}),
        "mrr": mean_reciprocal_rank(ranked, relevant),
        "recall_at_10": recall_at(ranked, relevant, 10),
        "map": mean_average_precision(ranked, relevant),
        "overhead_seconds": sum(c.get("overhead_seconds", 0.0) for c in costs) + sum(o["seconds"] for o in overhead),
        "scoring_seconds": scoring_seconds,
        "queries": effects.shape[1],
        "pairs": effects.size,
        "seconds_per_pair": scoring_seconds / effects.size,
        "peak_mib": max(part["peak_bytes"] for part in [*costs, *overhead]) / 2**20,
    }


def _lds(scores: Mapping[str, np.ndarray], effects: np.ndarray, bank: Bank, seed: int) -> dict[str, float]:
    """The table's columns on the LDS, against the retrainings of one seed."""
    subsets, gain = bank.subsets[bank.subset], -bank.measurements
    lds, low, high = mean_with_interval(subset_predictions(effects, subsets), gain, seed)
    return {"lds": lds, "lds_low": low, "lds_high": high, **_lds_by_stage(scores, subsets, gain)}


def _lds_by_stage(scores: Mapping[str, np.ndarray], subsets: np.ndarray, gain: np.ndarray) -> dict[str, float]:
    """`lds_{stage}` of the predictions from one stage's documents alone, where there are several stages.

    What the other stages' subsets do to the measurements is noise here.
    """
    if len(scores) == 1:
        return {}
    ends = np.cumsum([len(matrix) for matrix in scores.values()])[:-1]
    parts = zip(scores.items(), np.split(subsets, ends, axis=1), strict=True)
    return {f"lds_{stage}": _nanmean(rank_correlations(subset_predictions(m, s), gain)) for (stage, m), s in parts}
