"""The figure of cost against model size, with the fitted exponents."""

from collections.abc import Mapping

import pandas as pd
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from forebear.figures.style import DPI, style

_BLUE, _ORANGE, _GREEN, _VERMILION, _PURPLE, _, _, _, _, _SKY = sns.color_palette("colorblind")
# step → (label, colour, marker, line width)
LOOKS = {
    "fitting": ("fitting: sum of the next three", (0.0, 0.0, 0.0), "o", 2.2),
    "covariances": ("covariances", _BLUE, "s", 1.2),
    "eigenbasis": ("eigenbasis", _ORANGE, "^", 1.2),
    "eigenvalues": ("eigenvalues", _GREEN, "D", 1.2),
    "queries": ("queries: gradients and inverse", _SKY, "v", 1.2),
    "scores": ("scores", _VERMILION, "P", 2.2),
    "cg": ("one CG iteration of one query", _PURPLE, "X", 1.2),
}


def plot_costs(table: pd.DataFrame, growth: pd.DataFrame, conditions: Mapping[str, int], title: str) -> Figure:
    """Seconds of every step by tracked parameters on logarithmic axes: marks measured, lines fitted.

    Args:
        table: as from costs.measure_sizes.
        growth: as from costs.fit_growth.
        conditions: `documents`, `queries`, `repeats` and `threads`.
    """
    with style():
        figure = Figure(figsize=(9.5, 5), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        handles = []
        for step, (label, colour, marker, width) in LOOKS.items():
            times = table[table["step"] == step].sort_values("parameters")
            law = growth.set_index("step").loc[step]
            sizes, seconds = times["parameters"], times["seconds"]
            axes.vlines(sizes, times["low"], times["high"], color=colour, linewidth=1.2)
            mark = {"marker": marker, "linestyle": "none", "color": colour, "markersize": 6.5}
            axes.plot(sizes, seconds, **mark, markeredgecolor="white", gid=f"{step}/seconds")
            axes.plot(sizes, law.factor * sizes**law.exponent, color=colour, linewidth=width, gid=f"{step}/fit")
            exponent = f"{law.exponent:.2f} ({law.low:.2f} to {law.high:.2f})".replace("-", "−")
            handles.append(Line2D([], [], marker=marker, color=colour, linewidth=width, label=f"{exponent}  {label}"))
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_locator(NullLocator())
        axes.grid(axis="both", color="0.92", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("parameters P of the tracked blocks")
        axes.set_ylabel(f"seconds, median of {conditions['repeats']} (bars: range)")
        axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, alignment="left",
            title="x in seconds ∝ Pˣ (95 %), fitted to all sizes", title_fontsize=10.5,
        )  # fmt: skip
        threads = f"{conditions['threads']} thread" + "s" * (conditions["threads"] > 1)
        about = f"{conditions['documents']} documents, {conditions['queries']} queries, {threads}"
        figure.suptitle(f"cost by model size, {title}: {about}", x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure
