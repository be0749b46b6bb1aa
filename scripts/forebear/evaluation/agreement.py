"""How well estimators agree with a reference that was solved to a stated residual."""

import numpy as np
from scipy.stats import pearsonr

from forebear.evaluation.lds import BOOTSTRAP, LEVEL, rank_correlations


def agreement(scores: np.ndarray, reference: np.ndarray, seed: int) -> dict[str, float]:
    """Correlation of scores with a reference over the documents, averaged over queries.

    Args:
        scores, reference: [N, Q].

    Returns:
        `spearman` and `pearson`, each with `_low` and `_high` from a bootstrap over queries,
        and `spearman_min`, the worst query's.
    """
    linear = pearsonr(scores.astype(np.float64), reference.astype(np.float64), axis=0).statistic
    by_query = {"spearman": rank_correlations(scores, reference), "pearson": linear}
    generator = np.random.default_rng(seed)
    chosen = generator.integers(scores.shape[1], size=(BOOTSTRAP, scores.shape[1]))
    row = {}
    for name, values in by_query.items():
        low, high = np.quantile(values[chosen].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        row |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return {**row, "spearman_min": float(by_query["spearman"].min())}
