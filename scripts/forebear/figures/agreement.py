"""The figure of agreement with a converged reference, against time."""

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from forebear.estimators import ESTIMATORS
from forebear.figures.style import DPI, SHORTEST, appearance, mark_size, nudge_apart, style


def plot_agreement(table: pd.DataFrame, check: float, reference_seconds: float, title: str) -> Figure:
    """Spearman (filled) and Pearson (hollow) with the reference by seconds, as figure 3 of Bao et al. 2025.

    Args:
        table: one row an estimator, from agreement.agreement, with `estimator` and `seconds`.
        check: Spearman between the reference and its second run.
        reference_seconds: all that the reference's scores took.
    """
    with style():
        figure = Figure(figsize=(9, 5), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        second = f"{check:.5f}  the reference's second run"
        grey = {"color": "0.3", "linewidth": 1.3}
        handles = [
            Line2D([], [], **grey, linestyle="--", label=second),
            Line2D([], [], **grey, linestyle=":", label=f"{reference_seconds:.0f} seconds of the reference"),
        ]
        for row in table.sort_values("spearman", ascending=False).itertuples(index=False):
            colour, marker = appearance(row.estimator)
            seconds = max(row.seconds, SHORTEST)
            shape = {"marker": marker, "markersize": mark_size(marker), "color": colour, "linestyle": "none"}
            interval = [row.spearman_low, row.spearman_high]
            axes.plot([seconds] * 2, interval, color=colour, linewidth=1.8, gid=f"{row.estimator}/interval")
            axes.plot(seconds, row.pearson, **shape, markerfacecolor="white", gid=f"{row.estimator}/pearson")
            axes.plot(seconds, row.spearman, **shape, gid=f"{row.estimator}/spearman")
            label = f"{row.spearman:+.3f}  {row.pearson:+.3f}  {ESTIMATORS[row.estimator].label}"
            handles.append(Line2D([], [], **shape, label=label.replace("-0", "−0")))
        axes.axhline(check, **grey, linestyle="--", zorder=1)
        axes.axvline(reference_seconds, **grey, linestyle=":", zorder=1)
        axes.axhline(0, color="0.3", linewidth=0.8, zorder=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="both", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        shortest = f"\n(times under {SHORTEST:g} s are drawn at {SHORTEST:g} s)" * bool(
            (table["seconds"] < SHORTEST).any()
        )
        axes.set_xlabel(f"seconds for all scores, with all that they need{shortest}")
        axes.set_ylabel("correlation with the converged reference,\nmean over queries")
        axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, alignment="left",
            title="Spearman (filled, 95 %), Pearson (hollow)", title_fontsize=10.5,
        )  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        figure.draw_without_rendering()  # settles the layout, hence the sizes in pixels
        names = {f"spearman{end}": f"lds{end}" for end in ("", "_low", "_high")} | {"seconds": "scoring_seconds"}
        nudge_apart(figure, axes, table.rename(columns=names).assign(overhead_seconds=0.0))
    return figure
