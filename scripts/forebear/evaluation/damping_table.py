"""The table of a damping sweep: the LDS of every setting, also on halves of the queries that chose none of it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from forebear.evaluation.lds import _nanmean, rank_correlations


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
    for indices in np.ndindex(predictions.shape[:3]):
        correlations = rank_correlations(predictions[indices], gain)
        setting = {axis: values[index] for (axis, values), index in zip(grid.items(), indices, strict=True)}
        rows.append(
            {**setting, "lds_chosen": _nanmean(correlations[::2]), "lds_reported": _nanmean(correlations[1::2])}
        )
    return pd.DataFrame(rows)
