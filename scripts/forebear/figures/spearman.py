"""The figure of quality against cost: LDS of every estimator over its seconds a pair.

An estimator keeps its colour and its marker in every figure, whichever others are shown;
colours go by family, shapes are unlike each other, so that neither is needed alone.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from forebear.errors import ForebearError
from forebear.estimators import ESTIMATORS
from forebear.figures.style import (
    _MARK_SIZE,
    DPI,
    SHORTEST,
    _interval,
    _total_seconds,
    appearance,
    family,
    mark_size,
    nudge_apart,
    style,
)

CEILING_LABEL = "noise ceiling: another seed's retraining predicts this well"
CHANCE_LABEL = "chance: random scores"
UNDEFINED = "undefined here"
_LEGEND_LINES = 7  # of the legend beside families and estimators


def plot_spearman(evaluation: pd.DataFrame, ceiling: tuple[float, float, float], title: str) -> Figure:
    """Quality against cost, as in Bao et al. (IJCAI 2025): LDS by seconds, one filled mark an estimator.

    Args:
        evaluation: one row an estimator. Read are `estimator` (a key of ESTIMATORS), `lds`, `lds_low`,
            `lds_high` (Spearman's ρ; NaN where undefined), `overhead_seconds`, `scoring_seconds` (both
            for all pairs), `queries` (how many it ran on), `pairs` (N×Q) and, where there is one, `undefined` (why there is no LDS).
        ceiling: the noise ceiling's LDS and interval (value, low, high); NaN if it was not measured.
        title: of the figure.

    Returns:
        A figure of 10 inches by as many as its legend needs. Marks carry a gid, `{estimator}/filled` at overhead + scoring seconds
        and `{estimator}/hollow` at scoring seconds alone (left out where there is no overhead).

    Raises:
        ForebearError: for an estimator that is unknown, or that has a quality but no cost.
    """
    _check(evaluation)
    defined = evaluation[evaluation["lds"].notna()].sort_values("lds", kind="stable")  # the best on top
    with style():
        figure = Figure(figsize=(10, _height(evaluation)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        for row in defined.itertuples(index=False):
            _draw_estimator(axes, row)
        _set_axes(axes, evaluation, defined, ceiling)
        labels = _draw_references(axes, ceiling)
        _draw_legend(axes, evaluation, ceiling)
        figure.draw_without_rendering()  # settles the layout, hence the sizes in pixels
        nudge_apart(figure, axes, defined)
        _place_labels(axes, labels, defined)
    return figure


def _check(evaluation: pd.DataFrame) -> None:
    for row in evaluation.itertuples(index=False):
        if row.estimator not in ESTIMATORS:
            raise ForebearError(f"evaluation: {row.estimator!r} is no estimator; known are {', '.join(ESTIMATORS)}.")
        seconds = row.overhead_seconds + row.scoring_seconds
        if np.isfinite(row.lds) and not (np.isfinite(seconds) and min(row.overhead_seconds, row.scoring_seconds) >= 0):
            raise ForebearError(
                f"evaluation: {row.estimator} has an LDS but overhead_seconds = {row.overhead_seconds} and "
                f"scoring_seconds = {row.scoring_seconds}; measure its cost again."
            )


def _draw_estimator(axes: Axes, row) -> None:
    """The filled mark with its interval and, if there is overhead, the hollow mark and the line to it."""
    colour, marker = appearance(row.estimator)
    total, scoring = _total_seconds(row), max(row.scoring_seconds, SHORTEST)
    if row.overhead_seconds > 0:
        axes.plot([scoring, total], [row.lds] * 2, color=colour, linewidth=1, zorder=2, gid=f"{row.estimator}/overhead")
        axes.plot(
            scoring, row.lds, marker=marker, linestyle="none", color=colour, gid=f"{row.estimator}/hollow", zorder=4,
            markersize=mark_size(marker) - 1, markerfacecolor="white", markeredgewidth=1.4,
        )  # fmt: skip
    if np.isfinite([row.lds_low, row.lds_high]).all():
        # Not errorbar(), which refuses a bootstrap interval that does not hold its value.
        axes.plot(
            [total] * 2, [row.lds_low, row.lds_high], color=colour, gid=f"{row.estimator}/interval",
            linewidth=1.8, zorder=3, solid_capstyle="butt",
        )  # fmt: skip
    axes.plot(
        total, row.lds, marker=marker, linestyle="none", color=colour, gid=f"{row.estimator}/filled", zorder=5,
        markersize=mark_size(marker), markeredgecolor="white", markeredgewidth=0.8,
    )  # fmt: skip


def _set_axes(axes: Axes, evaluation: pd.DataFrame, defined: pd.DataFrame, ceiling: tuple[float, float, float]) -> None:
    """Scales, limits with room for the labels, ticks in plain numbers, axis labels with units."""
    axes.set_xscale("log")
    decades = 0.0
    if len(defined):
        both = pd.concat([defined["scoring_seconds"], defined["scoring_seconds"] + defined["overhead_seconds"]])
        low, high = np.log10(both.clip(lower=SHORTEST).agg(["min", "max"]))
        margin = max(0.06 * (high - low), 0.15)
        axes.set_xlim(10 ** (low - margin), 10 ** (high + margin))
        decades = high - low
    values = np.concatenate([[0.0], ceiling, *(defined[c] for c in ("lds", "lds_low", "lds_high"))])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.09 * max(high - low, 0.1)
    axes.set_ylim(low - margin, high + margin)

    axes.xaxis.set_major_locator(LogLocator(10, subs=(1,) if decades > 2 else (1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="both", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)

    pairs = evaluation["pairs"].dropna()
    number = f"N×Q = {int(pairs.max()):,}" if len(pairs) else "N×Q"
    shortest = evaluation["scoring_seconds"].lt(SHORTEST) & evaluation["lds"].notna()
    note = f"\n(times under {SHORTEST:g} s are drawn at {SHORTEST:g} s)" if shortest.any() else ""
    axes.set_xlabel(f"seconds for all {number} scores,\nwith overhead (filled) or scoring only (hollow){note}")
    axes.set_ylabel("LDS: mean Spearman's ρ\nwith real retrainings")


def _draw_references(axes: Axes, ceiling: tuple[float, float, float]) -> list[tuple[Text, float, float]]:
    """The ceiling's line and band, the line of chance; returns (label, y below it, y above it)."""
    axes.axhline(0, color="0.3", linewidth=1, linestyle=":", zorder=1, gid="chance")
    labels = [(_label(axes, CHANCE_LABEL, "0.25"), 0.0, 0.0)]
    value, low, high = ceiling
    if np.isfinite(value):
        axes.axhline(value, color="0.3", linewidth=1.3, linestyle="--", zorder=1, gid="ceiling")
        edges = [low, high] if np.isfinite([low, high]).all() else [value, value]
        if edges[0] < edges[1]:
            axes.axhspan(*edges, color="0.5", alpha=0.16, linewidth=0, zorder=0, gid="ceiling/interval")
        labels.append((_label(axes, CEILING_LABEL, "0.25"), *edges))
    return labels


def _label(axes: Axes, text: str, colour: str) -> Text:
    return axes.text(0, 0, text, color=colour, fontsize=10, zorder=6)


def _place_labels(axes: Axes, labels: Sequence[tuple[Text, float, float]], defined: pd.DataFrame) -> None:
    """Put each reference's label above or below it, left or right, where it covers the fewest marks."""
    boxes = _boxes(axes, defined)
    for text, low, high in labels:
        covered = []
        for side in (0.0, 1.0):
            for y, alignment in ((high, "bottom"), (low, "top")):
                _move_label(axes, text, side, y, alignment)
                box = text.get_window_extent()
                outside = box.y0 < axes.bbox.y0 or box.y1 > axes.bbox.y1
                covered.append((sum(map(box.overlaps, boxes)) + 100 * outside, side, y, alignment))
        _, *index = min(covered, key=lambda candidate: candidate[0])  # the first of equals
        _move_label(axes, text, *index)


def _move_label(axes: Axes, text: Text, side: float, y: float, alignment: str) -> None:
    """To the left (side 0) or right (1) end of the axes, 3 points above or below the data's y."""
    inverse = axes.transData.inverted()
    gap = 3 * axes.figure.dpi / 72 * (1 if alignment == "bottom" else -1)
    pixel = axes.transData.transform((axes.get_xlim()[0], y))
    text.set(
        x=0.01 + 0.98 * side,
        y=inverse.transform((pixel[0], pixel[1] + gap))[1],
        ha="right" if side else "left",
        va=alignment,
        transform=axes.get_yaxis_transform(),
    )


def _boxes(axes: Axes, defined: pd.DataFrame) -> list[Bbox]:
    """What the marks, the lines between them and the intervals cover, in pixels."""
    radius = 0.7 * _MARK_SIZE * axes.figure.dpi / 72
    boxes = []
    for row in defined.itertuples(index=False):
        total = _total_seconds(row)
        start = max(row.scoring_seconds, SHORTEST) if row.overhead_seconds > 0 else total
        low, high = _interval(row)
        for x0, y0, x1, y1 in ((start, row.lds, total, row.lds), (total, low, total, high)):
            corners = axes.transData.transform([(x0, y0), (x1, y1)])
            boxes.append(Bbox(corners + np.array([[-radius], [radius]])))
    return boxes


def _height(evaluation: pd.DataFrame) -> float:
    """Inches: at least 5.5, and room for every line of the legend."""
    families = len(_by_family(evaluation))
    return max(5.5, 0.6 + 0.2 * (len(evaluation) + families + _LEGEND_LINES))


def _draw_legend(axes: Axes, evaluation: pd.DataFrame, ceiling: tuple[float, float, float]) -> None:
    """To the right: families by their best LDS, in each the estimators by LDS; then what the marks mean."""
    blank = Line2D([], [], linestyle="none")
    entries: list[tuple[object, str]] = []
    headings: set[int] = set()

    def add_heading(text: str) -> None:
        headings.add(len(entries))
        entries.append((blank, text))

    for name, rows in _by_family(evaluation):
        add_heading(name)
        for row in rows:
            colour, marker = appearance(row.estimator)
            mark = Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=mark_size(marker))
            if np.isfinite(row.lds):
                part = f" ({int(row.queries)} queries)" if row.queries < evaluation["queries"].max() else ""
                entries.append((mark, f"{_number(row.lds)}  {ESTIMATORS[row.estimator].label}{part}"))
            else:
                entries.append((blank, f"{ESTIMATORS[row.estimator].label}: {_why_undefined(row)}"))

    add_heading("marks")
    grey = {"linestyle": "none", "marker": "o", "color": "0.3"}
    entries += [
        (Line2D([], [], markersize=_MARK_SIZE, **grey), "seconds with overhead"),
        (Line2D([], [], markersize=_MARK_SIZE - 1, markerfacecolor="white", markeredgewidth=1.4, **grey),
         "scoring seconds alone"),
        (Line2D([], [], linestyle="none", marker="|", color="0.3", markersize=13, markeredgewidth=1.8),
         "95 % bootstrap interval"),
        (blank, "(nudged apart if coinciding)"),
    ]  # fmt: skip
    if not np.isfinite(ceiling[0]):
        entries.append((blank, f"noise ceiling: {UNDEFINED}"))

    handles, texts = zip(*entries, strict=True)
    legend = axes.legend(
        handles, texts, loc="upper left", bbox_to_anchor=(1.02, 1.02), borderaxespad=0, frameon=False,
        handlelength=1.3, handletextpad=0.5, labelspacing=0.32,
        title="LDS of each estimator, by family", title_fontsize=10.5, alignment="left",
    )  # fmt: skip
    for index, text in enumerate(legend.get_texts()):
        if index in headings:
            text.set(fontweight="bold", color="0.2")


def _why_undefined(row) -> str:
    """The table's own words where it has some."""
    reason = getattr(row, "undefined", None)
    return reason if isinstance(reason, str) else UNDEFINED


def _by_family(evaluation: pd.DataFrame) -> list[tuple[str, list]]:
    """(family, its rows by falling LDS), families by their best; what is undefined comes last."""
    families: dict[str, list] = {}
    for row in evaluation.sort_values("lds", ascending=False, kind="stable").itertuples(index=False):
        families.setdefault(family(row.estimator), []).append(row)
    return list(families.items())


def _number(value: float) -> str:
    """Two decimals with a sign, as wide below zero as above it."""
    return f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")
