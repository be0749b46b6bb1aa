"""The figure of agreement with a converged reference, against time."""

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from forebear.estimators import ESTIMATORS
from forebear.plots import DPI, SHORTEST, appearance, mark_size, style


def plot_agreement(table: pd.DataFrame, check: float, title: str) -> Figure:
    """Spearman (filled) and Pearson (hollow) with the reference by seconds, as figure 3 of Bao et al. 2025.

    Args:
        table: one row an estimator, from agreement.agreement, with `estimator` and `seconds`.
        check: Spearman between the reference and its second run.
    """
    with style():
        figure = Figure(figsize=(9, 5), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        second = f"{check:.5f}  the reference's second run"
        handles = [Line2D([], [], color="0.3", linewidth=1.3, linestyle="--", label=second)]
        for row in table.sort_values("spearman", ascending=False).itertuples(index=False):
            colour, marker = appearance(row.estimator)
            seconds = max(row.seconds, SHORTEST)
            shape = {"marker": marker, "markersize": mark_size(marker), "color": colour, "linestyle": "none"}
            axes.plot([seconds] * 2, [row.spearman_low, row.spearman_high], color=colour, linewidth=1.8)
            axes.plot(seconds, row.pearson, **shape, markerfacecolor="white", gid=f"{row.estimator}/pearson")
            axes.plot(seconds, row.spearman, **shape, gid=f"{row.estimator}/spearman")
            label = f"{row.spearman:+.3f}  {row.pearson:+.3f}  {ESTIMATORS[row.estimator].label}"
            handles.append(Line2D([], [], **shape, label=label.replace("-0", "−0")))
        axes.axhline(check, color="0.3", linewidth=1.3, linestyle="--")
        axes.set_xscale("log")
        axes.set_xlabel("seconds for all scores, with all that they need")
        axes.set_ylabel("correlation with the converged reference,\nmean over queries")
        axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, alignment="left",
            title="Spearman (filled, 95 %), Pearson (hollow)", title_fontsize=10.5,
        )  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure
