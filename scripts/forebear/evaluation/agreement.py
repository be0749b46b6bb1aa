"""How well estimators agree with a reference that was solved to a stated residual."""

import numpy as np

from forebear.evaluation.lds import BOOTSTRAP, rank_correlations


def agreement(scores: np.ndarray, reference: np.ndarray, seed: int, level: float = 0.95) -> dict[str, float]:
    """Correlation of scores with a reference over the documents, averaged over queries.

    Args:
        scores, reference: [N, Q].

    Returns:
        `spearman` and `pearson`, each with `_low` and `_high` from a bootstrap over queries,
        and `spearman_min`, the worst query's.
    """
    by_query = {"spearman": rank_correlations(scores, reference), "pearson": _pearson(scores, reference)}
    generator = np.random.default_rng(seed)
    chosen = generator.integers(scores.shape[1], size=(BOOTSTRAP, scores.shape[1]))
    row = {}
    for name, values in by_query.items():
        low, high = np.quantile(values[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
        row |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return {**row, "spearman_min": float(by_query["spearman"].min())}


def _pearson(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of every column, [N, Q] and [N, Q] → [Q]."""
    one, other = (m.astype(np.float64) - m.mean(0, dtype=np.float64) for m in (one, other))
    return (one * other).sum(0) / np.sqrt((one**2).sum(0) * (other**2).sum(0))
