"""Cost against model size: every step timed at every size, and the law that made the times is found again."""

import numpy as np
import pandas as pd
import pytest
import yaml

from copies import ROOT
from forebear.config.reading import parse_config
from forebear.data.corpora.facts import build_facts
from forebear.errors import ForebearError
from forebear.evaluation.cost_growth import FITTED, STEPS, fit_growth, measure_sizes
from forebear.figures.costs import LOOKS, plot_costs
from forebear.gradients.blocks import tracked_blocks
from forebear.models.training import build_model, build_tokenizer

MODEL = {"model_type": "gpt_neox", "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WIDTHS = (8, 12, 16)
CONDITIONS = {"documents": 4, "queries": 2, "repeats": 3, "threads": 1}


def law(exponents: dict[str, float], factor: float = 1e-6) -> pd.DataFrame:
    """Times that follow factor · P^exponent to the digit."""
    parameters = np.array([1e4, 3e4, 1e5, 1e6])
    tables = []
    for step, exponent in exponents.items():
        seconds = factor * parameters**exponent
        spread = {"seconds": seconds, "low": 0.9 * seconds, "high": 1.1 * seconds}
        tables.append(pd.DataFrame({"parameters": parameters, "step": step, **spread}))
    return pd.concat(tables)


def test_every_step_is_timed_at_every_size_and_fitting_is_the_sum_of_its_parts():
    corpus = build_facts(countries=4, query_countries=2, glosses=False)
    records = corpus["pretraining"][:4], corpus["queries"][:2]
    sizes = [{"hidden_size": width} for width in WIDTHS]
    table = measure_sizes(MODEL, sizes, *records, 16, 64, split_heads=True, repeats=1, seed=0)
    assert list(zip(table["hidden_size"], table["step"], strict=True)) == [(w, s) for w in WIDTHS for s in STEPS]
    assert (table["seconds"] > 0).all()
    by_step = table.pivot(index="hidden_size", columns="step", values="seconds")
    assert by_step["fitting"].tolist() == pytest.approx(by_step[list(FITTED)].sum(axis=1).tolist())
    tokenizer = build_tokenizer([*records[0], *records[1]])
    for width, parameters in zip(table["hidden_size"], table["parameters"], strict=True):
        model = build_model({**MODEL, "hidden_size": width}, tokenizer, 0)
        # Each map's O × (I + 1): QKV, attention's output and the two of the MLP.
        assert parameters == sum(o * (i + 1) for o, i in [(3 * width, width), (width, width), (16, width), (width, 16)])
        assert parameters == sum(block.shape[0] * block.shape[1] for block in tracked_blocks(model, split_heads=True))


def test_the_exponent_of_an_exact_law_is_found():
    growth = fit_growth(law({"covariances": 1.0, "eigenbasis": 1.5})).set_index("step")
    assert growth["exponent"].to_dict() == pytest.approx({"covariances": 1.0, "eigenbasis": 1.5})
    assert growth["factor"].tolist() == pytest.approx([1e-6, 1e-6])
    assert growth[["low", "high"]].loc["eigenbasis"].tolist() == pytest.approx([1.5, 1.5])


def test_the_interval_holds_the_exponent_as_often_as_it_says():
    generator = np.random.default_rng(0)
    held = []
    for _ in range(400):
        table = law({"scores": 1.2})
        table["seconds"] *= np.exp(generator.normal(0, 0.2, len(table)))
        row = fit_growth(table).iloc[0]
        held.append(row["low"] <= 1.2 <= row["high"])
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)


def test_two_sizes_are_too_few():
    table = law({"scores": 1.0})
    with pytest.raises(ForebearError, match="at least three sizes"):
        fit_growth(table[table["parameters"] < 5e4])


def test_the_config_wants_three_sizes_of_a_model_that_is_trained_here():
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    study = config["studies"]["tiny"]
    sizes = study["cost"].pop("sizes")
    study["cost"]["sizes"] = sizes[:2]
    with pytest.raises(ForebearError, match=r"cost\.sizes.*at least three"):
        parse_config(config)
    study["cost"]["sizes"] = sizes
    parse_config(config)
    del study["model"], study["stages"][0]["training"]
    study["stages"][0]["checkpoint"] = "a/folder"
    study["estimators"] = ["multistage-ekfac"]
    with pytest.raises(ForebearError, match=r"cost\.sizes.*published"):
        parse_config(config)


def test_the_figure_has_times_where_they_are_and_prints_the_exponents():
    table = law({step: 1 + k / 10 for k, step in enumerate(LOOKS)})
    figure = plot_costs(table, fit_growth(table), CONDITIONS, "study")
    (axes,) = figure.axes
    lines = {line.get_gid(): line.get_xydata() for line in axes.lines}
    scores = table[table["step"] == "scores"]
    for part in ("seconds", "fit"):
        assert lines[f"scores/{part}"] == pytest.approx(scores[["parameters", "seconds"]].to_numpy())
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts[0].startswith("1.00 (1.00 to 1.00)  fitting")
    assert len(texts) == len(STEPS)
    assert set(LOOKS) == set(STEPS)
