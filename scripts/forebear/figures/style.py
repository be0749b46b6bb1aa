"""The looks that all figures share: families of estimators, marks, sizes, and marks that do not hide each other."""

from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from forebear.estimators import COLUMNS, ESTIMATORS, root

DPI = 200
SHORTEST = 1e-3  # seconds; what a clock calls less is drawn here, as a log axis has no zero

# What an estimator does with curvature, from the columns that it reads.
FAMILY_OF_STAGES = {
    "chain": "multi-stage",
    "joint": "single inverse",
    "own": "single inverse",
    "later": "single inverse",
    "none": "gradient, no curvature",
}
NO_GRADIENTS = "no gradients"

# Cool, warm, purple and grey: hues of seaborn's "colorblind" palette (its yellow and pink are
# too pale for a hollow mark), told apart within a family by lightness too.
_BLUE, _ORANGE, _GREEN, _VERMILION, _PURPLE, _BROWN, _, _, _, _SKY = sns.color_palette("colorblind")
_FAMILY_COLOURS = {
    "multi-stage": (_BLUE, _SKY, _GREEN),
    "single inverse": (_VERMILION, _ORANGE, tuple(0.55 * c for c in _BROWN)),
    "gradient, no curvature": (_PURPLE, tuple(0.55 * c for c in _PURPLE)),
    NO_GRADIENTS: (to_rgb("0.35"), to_rgb("0.6"), to_rgb("0.0")),
}
_STARS = (
    [(points, 1, 0) for points in (4, 6, 3, 8)]
    + [(points, 1, 180) for points in (5, 3, 7)]
    + [(4, 1, 45), (10, 1, 0), (5, 1, 90)]
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "<", ">", "X", "p", "*", "h", "d", "8", "H", *_STARS)
_MARK_SIZE = 8.5  # points, of a circle
_RELATIVE_SIZE = dict.fromkeys(_STARS, 1.6) | {
    "D": 0.88,
    "s": 0.95,
    "*": 1.6,
    "P": 1.2,
    "X": 1.2,
    "p": 1.15,
    "d": 1.2,
    "h": 1.1,
}  # to look alike
_NUDGE = 4.0  # points between estimators that are parted
_COINCIDING = 2.0  # points: the width of an interval's bar


def family(estimator: str) -> str:
    """The group under which a legend lists an estimator."""
    columns = ESTIMATORS[root(estimator)].columns
    if ESTIMATORS[root(estimator)].retrained:
        return FAMILY_OF_STAGES["joint" if ESTIMATORS[estimator].at_last else "chain"]
    return NO_GRADIENTS if columns is None else FAMILY_OF_STAGES[COLUMNS[columns].stages]


def appearance(estimator: str) -> tuple[tuple[float, float, float], str | tuple[int, int, int]]:
    """The (RGB colour, marker) of an estimator, from its place in the table of estimators."""
    relatives = [e for e in ESTIMATORS if family(e) == family(estimator)]
    colours = _FAMILY_COLOURS[family(estimator)]
    marker = _MARKERS[list(ESTIMATORS).index(estimator) % len(_MARKERS)]
    return colours[relatives.index(estimator) % len(colours)], marker


def mark_size(marker: str | tuple[int, int, int]) -> float:
    """Points; pointed shapes are made larger so that all look alike."""
    return _MARK_SIZE * _RELATIVE_SIZE.get(marker, 1.0)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG whose bytes depend on the figure alone: no date, no program's version."""
    with style():
        figure.savefig(path, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})


def style() -> AbstractContextManager:
    """Settings within which figures are made and written, whatever the user's matplotlibrc says."""
    settings = dict(matplotlib.rcParamsDefault)
    settings.pop("backend", None)
    settings |= sns.axes_style("ticks")
    return matplotlib.rc_context(
        settings
        | {
            "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
            "font.size": 11,
            "axes.labelsize": 11,
            "xtick.labelsize": 11,
            "ytick.labelsize": 11,
            "legend.fontsize": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def _total_seconds(row) -> float:
    return max(row.overhead_seconds + row.scoring_seconds, SHORTEST)


def nudge_apart(figure: Figure, axes: Axes, defined: pd.DataFrame) -> None:
    """Show estimators side by side, a few points apart, where one's interval would hide another's.

    Their data stay what they are: the nudge is in the artists' transforms.
    """
    for names in _coinciding(axes, defined):
        for index, name in enumerate(names):
            points = _NUDGE * (index - (len(names) - 1) / 2)
            shift = ScaledTranslation(points / 72, 0, figure.dpi_scale_trans)
            for line in axes.lines:
                if (line.get_gid() or "").startswith(f"{name}/"):
                    line.set_transform(axes.transData + shift)


def _coinciding(axes: Axes, defined: pd.DataFrame) -> list[list[str]]:
    """Groups of estimators, in order of cost, of which each would hide most of its neighbour's interval."""
    groups: list[list] = []
    for row in sorted(defined.itertuples(index=False), key=lambda row: (_total_seconds(row), row.lds)):
        near = groups and _horizontal_gap(axes, groups[-1][-1], row) < _COINCIDING
        if near and any(_hides(row, other) for other in groups[-1]):
            groups[-1].append(row)
        else:
            groups.append([row])
    return [[row.estimator for row in group] for group in groups if len(group) > 1]


def _hides(row, other) -> bool:
    """Whether two intervals share at least half of the shorter one."""
    (low, high), (other_low, other_high) = _interval(row), _interval(other)
    return min(high, other_high) - max(low, other_low) >= min(high - low, other_high - other_low) / 2


def _horizontal_gap(axes: Axes, left, right) -> float:
    """Points between two filled marks."""
    pixels = axes.transData.transform([(_total_seconds(row), 0) for row in (left, right)])[:, 0]
    return float(pixels[1] - pixels[0]) * 72 / axes.figure.dpi


def _interval(row) -> tuple[float, float]:
    low, high = np.nan_to_num([row.lds_low, row.lds_high], nan=row.lds)
    return low, high
