"""The damping figure frames the setting that one half of the queries chose."""

import itertools

import pandas as pd
from matplotlib.patches import Rectangle

from forebear.figures.damping import plot_damping


def test_the_chosen_setting_is_framed_in_both_halves():
    settings = list(itertools.product([0.1, 1.0], [0.01, 0.1, 1.0], [1e-3, 1e-2]))
    table = pd.DataFrame(settings, columns=["alpha", "later", "own"])
    table["lds_chosen"] = 0.3 + 0.2 * ((table["alpha"] == 1.0) & (table["later"] == 0.1) & (table["own"] == 1e-3))
    table["lds_reported"] = 0.25
    figure = plot_damping(table, "study")
    frames = [
        (axes.get_title(), patch.get_xy()) for axes in figure.axes for patch in axes.patches if type(patch) is Rectangle
    ]
    assert frames == [("α = 1", (1, 1))] * 2
    assert "0.500" in figure.get_suptitle()
    assert "0.250" in figure.get_suptitle()
