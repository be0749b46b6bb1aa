"""The figure of the damping sweep: one panel for each α and half of the queries."""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from forebear.figures.style import DPI, style

HALVES = {"lds_chosen": "LDS on the half that chooses", "lds_reported": "LDS on the other half"}


def plot_damping(table: pd.DataFrame, title: str) -> Figure:
    """LDS over (ρ of the later stages, ρ of the documents' stage), for every α.

    Args:
        table: one row a setting with `alpha`, `later`, `own`, `lds_chosen`, `lds_reported`
            (evaluation.damping_table). The setting that is best by `lds_chosen` is framed in
            every row of panels.
    """
    alphas = sorted(table["alpha"].unique())
    best = table.loc[table["lds_chosen"].idxmax()]
    limits = table[list(HALVES)].min().min(), table[list(HALVES)].max().max()
    with style():
        figure = Figure(figsize=(3.1 * len(alphas) + 1.2, 6.2), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(HALVES), len(alphas), squeeze=False, sharex=True, sharey=True)
        for row, (half, label) in zip(panels, HALVES.items(), strict=True):
            for axes, alpha in zip(row, alphas, strict=True):
                _draw_panel(axes, table[table["alpha"] == alpha], half, limits)
                axes.set_title(f"α = {alpha:g}")
                if alpha == best["alpha"]:
                    _frame(axes, table, best)
            row[0].set_ylabel(f"{label}\n\nρ of the documents' stage")
        for axes in panels[-1]:
            axes.set_xlabel("ρ of the later stages")
        scale = figure.colorbar(panels[0, 0].collections[0], ax=panels, shrink=0.6)
        scale.set_label("LDS")
        figure.suptitle(
            f"{title}: damping chosen on half of the queries {best['lds_chosen']:.3f}, "
            f"the same setting on the other half {best['lds_reported']:.3f}",
            x=0.01,
            ha="left",
            fontsize=12,
            fontweight="bold",
        )
    return figure


def _draw_panel(axes: Axes, rows: pd.DataFrame, half: str, limits: tuple[float, float]) -> None:
    grid = rows.pivot(index="own", columns="later", values=half).sort_index(ascending=False)
    low, high = limits
    sns.heatmap(
        grid, ax=axes, vmin=low, vmax=high, cmap="cividis", annot=True, fmt=".2f", annot_kws={"size": 7}, cbar=False
    )
    axes.set(xlabel="", ylabel="")
    axes.set_xticklabels([f"{value:g}" for value in grid.columns], rotation=45)
    axes.set_yticklabels([f"{value:g}" for value in grid.index], rotation=0)


def _frame(axes: Axes, table: pd.DataFrame, best: pd.Series) -> None:
    """Frame the chosen setting; rows run downwards from the largest ρ."""
    x = sorted(table["later"].unique()).index(best["later"])
    y = sorted(table["own"].unique(), reverse=True).index(best["own"])
    axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="red", linewidth=2))
