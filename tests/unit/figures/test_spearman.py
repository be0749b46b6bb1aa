"""Figures: marks where the numbers say, everything named, the same bytes every time."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

from forebear.errors import ForebearError
from forebear.estimators import ESTIMATORS
from forebear.figures.spearman import CEILING_LABEL, CHANCE_LABEL, plot_spearman
from forebear.figures.style import appearance, family, save_figure

CEILING = (0.55, 0.50, 0.60)
NAN = float("nan")
ROWS = [  # estimator, lds, overhead seconds, scoring seconds
    ("multistage-ekfac", 0.45, 12.0, 2.0),
    ("multistage-ekfac-mlp", 0.44, 12.0, 2.0),
    ("multistage-kfac", 0.42, 9.0, 2.0),
    ("singlestage-ekfac", 0.37, 11.0, 2.0),
    ("pretrain-ekfac", 0.40, 7.0, 2.0),
    ("finetune-ekfac", 0.26, 5.0, 2.0),
    ("gradient-dot", 0.12, 0.9, 2.0),
    ("gradient-cosine", 0.15, 0.9, 2.0),
    ("embedding", 0.02, 0.6, 0.02),
    ("bm25", 0.20, 0.1, 0.05),
    ("random", -0.004, 0.0, 0.002),
]


def make_evaluation(rows=ROWS) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["estimator", "lds", "overhead_seconds", "scoring_seconds"])
    pairs = 1440 * 160
    return table.assign(
        lds_low=table["lds"] - 0.04,
        lds_high=table["lds"] + 0.04,
        mrr=0.5,
        recall_at_10=0.5,
        queries=160,
        pairs=pairs,
        seconds_per_pair=table["scoring_seconds"] / pairs,
        peak_mib=900.0,
    )


def marks(figure) -> dict[str, list[tuple[float, float]]]:
    """Data coordinates of every artist that carries a gid."""
    lines = figure.axes[0].lines
    return {line.get_gid(): list(zip(*map(np.ravel, line.get_data()), strict=True)) for line in lines if line.get_gid()}


def legend_texts(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_every_estimator_has_its_marks_where_the_numbers_say():
    found = marks(plot_spearman(make_evaluation(), CEILING, "title"))
    for name, lds, overhead, scoring in ROWS:
        assert found[f"{name}/filled"] == [(pytest.approx(overhead + scoring), lds)]
        assert [y for _, y in found[f"{name}/interval"]] == pytest.approx([lds - 0.04, lds + 0.04])
        if overhead:
            assert found[f"{name}/hollow"] == [(scoring, lds)]
            assert found[f"{name}/overhead"] == [(scoring, lds), (pytest.approx(overhead + scoring), lds)]
        else:
            assert f"{name}/hollow" not in found


def test_filled_marks_are_filled_and_hollow_ones_hollow_in_one_colour():
    figure = plot_spearman(make_evaluation(), CEILING, "title")
    lines = {line.get_gid(): line for line in figure.axes[0].lines}
    colour, marker = appearance("multistage-ekfac")
    filled, hollow = lines["multistage-ekfac/filled"], lines["multistage-ekfac/hollow"]
    assert filled.get_markerfacecolor() == colour == hollow.get_markeredgecolor()
    assert hollow.get_markerfacecolor() == "white"
    assert filled.get_marker() == marker == hollow.get_marker()


def test_appearances_are_all_different_and_do_not_depend_on_the_company():
    assert len({appearance(e) for e in ESTIMATORS}) == len({appearance(e)[1] for e in ESTIMATORS}) == len(ESTIMATORS)


def test_legend_is_sorted_by_lds_within_families():
    texts = legend_texts(plot_spearman(make_evaluation(), CEILING, "title"))
    expected = [
        "multi-stage",
        "+0.45  multi-stage EK-FAC",
        "+0.44  multi-stage EK-FAC, MLP",
        "+0.42  multi-stage K-FAC",
    ]
    assert texts[:4] == expected
    assert texts[4:8] == [
        "single inverse",
        "+0.40  first inverse only",
        "+0.37  single-stage EK-FAC",
        "+0.26  last inverse only",
    ]
    assert "+0.00  random" in texts
    assert "−0.20  BM25" in legend_texts(plot_spearman(make_evaluation([("bm25", -0.2, 0.1, 0.1)]), CEILING, "t"))


@pytest.mark.parametrize(
    ("estimator", "name"),
    [
        ("multistage-ekfac-mlp", "multi-stage"),
        ("singlestage-ekfac", "single inverse"),
        ("pretrain-ekfac", "single inverse"),
        ("finetune-ekfac", "single inverse"),
        ("gradient-cosine", "gradient, no curvature"),
        ("bm25", "no gradients"),
    ],
)
def test_families_follow_from_the_columns(estimator, name):
    assert family(estimator) == name


def test_ceiling_and_chance_are_drawn_and_labelled():
    axes = plot_spearman(make_evaluation(), CEILING, "title").axes[0]
    assert {CEILING_LABEL, CHANCE_LABEL} <= {text.get_text() for text in axes.texts}
    lines = {line.get_gid(): line for line in axes.lines}
    assert lines["ceiling"].get_ydata()[0] == CEILING[0]
    assert lines["chance"].get_ydata()[0] == 0
    (band,) = [patch for patch in axes.patches if patch.get_gid() == "ceiling/interval"]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx(CEILING[1:])


def test_undefined_estimators_are_named_not_drawn():
    rows = [row if row[0] != "singlestage-ekfac" else ("singlestage-ekfac", NAN, NAN, NAN) for row in ROWS]
    figure = plot_spearman(make_evaluation(rows), CEILING, "title")
    assert "single-stage EK-FAC: undefined here" in legend_texts(figure)
    assert not any(gid.startswith("singlestage-ekfac") for gid in marks(figure))


def test_undefined_ceiling_and_interval_are_left_out():
    evaluation = make_evaluation().assign(lds_low=NAN, lds_high=NAN)
    figure = plot_spearman(evaluation, (NAN, NAN, NAN), "title")
    assert "noise ceiling: undefined here" in legend_texts(figure)
    found = marks(figure)
    assert "ceiling" not in found
    assert "bm25/filled" in found
    assert "bm25/interval" not in found


def test_nothing_defined_still_gives_a_figure(tmp_path):
    evaluation = make_evaluation([(name, NAN, NAN, NAN) for name in ESTIMATORS])
    save_figure(plot_spearman(evaluation, (NAN, NAN, NAN), "title"), tmp_path / "empty.png")


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2])
def test_labels_stay_inside_and_do_not_cover_each_other_or_the_marks(shift):
    rows = [(name, lds + shift, overhead, scoring) for name, lds, overhead, scoring in ROWS]
    figure = plot_spearman(make_evaluation(rows), CEILING, "title")
    axes = figure.axes[0]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not boxes[0].overlaps(boxes[1])
    for box in boxes:
        assert box.x0 >= axes.bbox.x0
        assert box.x1 <= axes.bbox.x1
        assert box.y0 >= axes.bbox.y0
        assert box.y1 <= axes.bbox.y1
        for line in axes.lines:
            if (line.get_gid() or "").endswith(("/filled", "/hollow", "/interval")):
                pixels = line.get_transform().transform(np.column_stack(line.get_data()))
                assert not any(box.contains(x, y) for x, y in pixels)
    assert axes.get_legend().get_window_extent().x0 > axes.bbox.x1


def test_coinciding_intervals_are_shown_side_by_side():
    figure = plot_spearman(make_evaluation(), CEILING, "title")  # two have the same seconds and near LDS
    lines = {line.get_gid(): line for line in figure.axes[0].lines}
    pixels = {
        name: lines[f"{name}/filled"].get_transform().transform((14.0, 0.4))[0]
        for name in ("multistage-ekfac", "multistage-ekfac-mlp")
    }
    assert 2 < abs(pixels["multistage-ekfac"] - pixels["multistage-ekfac-mlp"]) * 72 / figure.dpi < 6


def test_times_below_the_clock_are_drawn_at_its_limit_and_said_so():
    evaluation = make_evaluation([("random", 0.0, 0.0, 0.0), ("bm25", 0.2, 0.1, 0.05)])
    figure = plot_spearman(evaluation, CEILING, "title")
    assert marks(figure)["random/filled"] == [(0.001, 0.0)]
    assert "times under 0.001 s" in figure.axes[0].get_xlabel()
    assert "230,400" in figure.axes[0].get_xlabel()


def test_saving_twice_gives_the_same_bytes_whatever_the_settings(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("a.png", "b.png"):
        save_figure(plot_spearman(make_evaluation(), CEILING, "title"), tmp_path / name)
    figure = plot_spearman(make_evaluation(), CEILING, "title")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 20, "font.sans-serif": ["DejaVu Serif"], "savefig.dpi": 50}):
        save_figure(plot_spearman(make_evaluation(), CEILING, "title"), tmp_path / "c.png")
        save_figure(figure, tmp_path / "d.png")
        save_figure(figure, tmp_path / "e.png")
    contents = {(tmp_path / f"{name}.png").read_bytes() for name in "abcde"}
    assert len(contents) == 1
    assert b"tIME" not in contents.pop()


def test_mistakes_are_refused():
    with pytest.raises(ForebearError, match="'oracle' is no estimator"):
        plot_spearman(make_evaluation([("oracle", 0.9, 1.0, 1.0)]), CEILING, "title")
    with pytest.raises(ForebearError, match="bm25 has an LDS but"):
        plot_spearman(make_evaluation([("bm25", 0.9, NAN, 1.0)]), CEILING, "title")


def test_the_legend_says_why_an_estimator_is_undefined():
    table = make_evaluation().assign(undefined=None)
    row = table["estimator"] == "singlestage-ekfac"
    table.loc[row, ["lds", "lds_low", "lds_high", "overhead_seconds", "scoring_seconds", "pairs"]] = NAN
    table.loc[row, "undefined"] = "undefined: the head was replaced"
    figure = plot_spearman(table, CEILING, "title")
    assert "single-stage EK-FAC: undefined: the head was replaced" in legend_texts(figure)
    assert "singlestage-ekfac/filled" not in marks(figure)


def test_the_figure_grows_with_its_legend():
    rows = [(name, 0.4 - 0.01 * k, 1.0 + k, 0.1) for k, name in enumerate(ESTIMATORS)]
    figure = plot_spearman(make_evaluation(rows), CEILING, "title")
    axes = figure.axes[0]
    assert axes.get_legend().get_window_extent().y0 >= 0
    assert axes.bbox.height > 0.7 * figure.bbox.height
    assert axes.bbox.width > 0.5 * figure.bbox.width


def test_an_estimator_that_ran_on_some_of_the_queries_says_so():
    evaluation = make_evaluation([("multistage-ekfac", 0.45, 12.0, 2.0), ("cg", 0.4, 90.0, 2.0)])
    evaluation.loc[evaluation["estimator"] == "cg", ["queries", "pairs"]] = [16, 1440 * 16]
    figure = plot_spearman(evaluation, CEILING, "title")
    texts = legend_texts(figure)
    assert "+0.40  multi-stage CG (16 queries)" in texts
    assert "+0.45  multi-stage EK-FAC" in texts
    assert "N×Q = 230,400" in figure.axes[0].get_xlabel()
