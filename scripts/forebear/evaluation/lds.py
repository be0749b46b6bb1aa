"""The LDS: how well scores predict retraining, with its interval, and the noise ceiling."""

import warnings
from collections.abc import Mapping

import numpy as np
from scipy.stats import ConstantInputWarning, pearsonr, rankdata

from forebear.ground_truth.bank import Bank

BOOTSTRAP = 500  # resamples of an interval
LEVEL = 0.95  # of every interval


def document_effects(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores of several stages' documents on one scale: stage → [N_s, Q] to [Σ N_s, Q].

    A document's weight in the mean loss of its stage is 1/N_s, so score/N_s predicts by how
    much the query's loss rises when the document is removed.
    """
    return np.concatenate([matrix / len(matrix) for matrix in scores.values()])


def noise_ceiling(bank: Bank, seed: int) -> tuple[float, float, float]:
    """How well retrainings with another seed predict those with the study's, as an LDS."""
    first, second = bank.with_seed(seed), bank.with_seed(seed + 1)
    common = np.isin(first.subset, second.subset)
    return mean_with_interval(second.measurements, first.measurements[common], seed)


def rank_correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every column: [R, Q] and [R, Q] → [Q]; NaN where a column is constant."""
    with warnings.catch_warnings(action="ignore", category=ConstantInputWarning):
        return pearsonr(rankdata(predicted, axis=0), rankdata(measured, axis=0), axis=0).statistic


def subset_predictions(effects: np.ndarray, subsets: np.ndarray) -> np.ndarray:
    """Σ_{z in S_j} effect(z, x): effects [N, Q], subsets [R, N] bool → [R, Q]."""
    return subsets.astype(np.float64) @ effects.astype(np.float64)


def mean_with_interval(predicted: np.ndarray, measured: np.ndarray, seed: int) -> tuple[float, float, float]:
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
    low, high = np.nanquantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return value, float(low), float(high)


def _nanmean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
