"""How well scores predict retraining (LDS), find known sources, and what they cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from forebear.errors import shortened

BOOTSTRAP = 500  # resamples of an interval


@dataclass(frozen=True)
class Bank:
    """The ground truth: R retrainings, each on one of the subsets with one seed."""

    subsets: np.ndarray  # [S, N] bool, over the documents of all attributed stages
    subset: np.ndarray  # [R] row of `subsets`
    seed: np.ndarray  # [R]
    measurements: np.ndarray  # [R, Q] query losses in nats

    def with_seed(self, seed: int) -> "Bank":
        """The retrainings of one seed."""
        chosen = self.seed == seed
        return Bank(self.subsets, self.subset[chosen], self.seed[chosen], self.measurements[chosen])

    def of_queries(self, chosen: np.ndarray) -> "Bank":
        """What was measured on some of the queries, [Q] bool."""
        return replace(self, measurements=self.measurements[:, chosen])


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


def document_effects(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores of several stages' documents on one scale: stage → [N_s, Q] to [Σ N_s, Q].

    A document's weight in the mean loss of its stage is 1/N_s, so score/N_s predicts by how
    much the query's loss rises when the document is removed.
    """
    return np.concatenate([matrix / len(matrix) for matrix in scores.values()])


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


def noise_ceiling(bank: Bank, seed: int) -> tuple[float, float, float]:
    """How well retrainings with another seed predict those with the study's, as an LDS."""
    first, second = bank.with_seed(seed), bank.with_seed(seed + 1)
    common = np.isin(first.subset, second.subset)
    return mean_with_interval(second.measurements, first.measurements[common], seed)


def rank_correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every column: [R, Q] and [R, Q] → [Q]; NaN where a column is constant."""

    def standardised(values: np.ndarray) -> np.ndarray:
        ranks = rankdata(values, axis=0)
        centred = ranks - ranks.mean(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return centred / np.sqrt((centred**2).sum(0))

    return (standardised(predicted) * standardised(measured)).sum(0)


def sweep_table(predictions: np.ndarray, grid: Mapping[str, np.ndarray], gain: np.ndarray) -> pd.DataFrame:
    """LDS of every setting of a sweep: on the half of the queries that chooses, and on the other.

    Args:
        predictions: [A, L, W, R, Q] of R retrainings.
        grid: `alpha` [A], `later` [L], `own` [W].
        gain: [R, Q] minus the query losses of the retrained models.

    Returns:
        One row a setting: `alpha`, `later`, `own`, `lds_chosen` (queries 0, 2, 4, ...) and
        `lds_reported` (1, 3, 5, ...).
    """
    rows = []
    for places in np.ndindex(predictions.shape[:3]):
        correlations = rank_correlations(predictions[places], gain)
        setting = {axis: values[place] for (axis, values), place in zip(grid.items(), places, strict=True)}
        rows.append(
            {**setting, "lds_chosen": _nanmean(correlations[::2]), "lds_reported": _nanmean(correlations[1::2])}
        )
    return pd.DataFrame(rows)


def subset_predictions(effects: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Σ_{z in S_j} effect(z, x): effects [N, Q], subsets [R, N] bool → [R, Q]."""
    return subsets.astype(np.float64) @ effects.astype(np.float64)


def mean_with_interval(
    predicted: np.ndarray, measured: np.ndarray, seed: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean rank correlation over queries, with a bootstrap interval over subsets and queries.

    Args:
        predicted: [R, Q] what larger should mean a larger `measured`.
        measured: [R, Q]; for the LDS (Park et al. 2023, arXiv 2303.14186, equation 4) minus the
            query losses of the retrained models.

    Returns:
        (mean, low, high); queries whose measurement does not vary are left out.
    """
    value = _nanmean(rank_correlations(predicted, measured))
    generator = np.random.default_rng(seed)
    rows, columns = predicted.shape
    resampled = []
    for _ in range(BOOTSTRAP):
        chosen = generator.integers(rows, size=rows)[:, None], generator.integers(columns, size=columns)[None]
        resampled.append(_nanmean(rank_correlations(predicted[chosen], measured[chosen])))
    low, high = np.nanquantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return value, float(low), float(high)


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


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
    places = {document["id"]: i for i, document in enumerate(documents)}
    mask = np.zeros((len(documents), len(queries)), bool)
    for column, query in zip(mask.T, queries, strict=True):
        column[[places[name] for name in query.get("candidates", places) if name in places]] = True
    return mask


def relevant_indices(documents: Sequence[dict], queries: Sequence[dict]) -> list[list[int]]:
    """For every query, the places of the documents, of any attributed stage, that its `relevant` names."""
    places: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        places.setdefault(document["id"], []).append(i)
    return [[i for name in query.get("relevant", []) for i in places.get(name, [])] for query in queries]


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
