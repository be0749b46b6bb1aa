"""The file of a damping sweep: predictions for every combination of α and dampings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from forebear.artifacts.hdf5 import Attributes, create, open_checked

_GRID = ("alpha", "later", "own")


def write_sweep(
    path: str | Path, predictions: np.ndarray, grid: Mapping[str, Sequence[float]], attributes: Attributes
) -> None:
    """Predictions [A, L, W, S, Q] with the grid's `alpha` [A], `later` [L] and `own` [W]."""
    with create(path, "sweep", attributes) as file:
        file["predictions"] = predictions
        for axis in _GRID:
            file[axis] = np.asarray(grid[axis], dtype=float)


def read_sweep(path: str | Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Predictions [A, L, W, S, Q] and the values of the first three axes."""
    with open_checked(path, "sweep") as file:
        return file["predictions"][()], {axis: file[axis][()] for axis in _GRID}
