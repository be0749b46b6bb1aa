"""The embedded studies, made tiny, run to their figures."""

import json
from pathlib import Path

import pandas as pd
import yaml

from copies import ROOT, copy_workflow, snakemake

MODEL = {
    "model_type": "gpt_neox",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
CORPORA = {
    "midtraining": {"embedded": "midtraining", "countries": 6, "query_countries": 2, "passages": 8},
    "speeches": {"embedded": "speeches", "passages": 16, "query_passages": 6},
    "validation": {"embedded": "prose", "passages": 16, "query_passages": 3},
}
ESTIMATORS = ["multistage-ekfac", "singlestage-ekfac", "gradient-dot", "embedding", "bm25"]


def tiny(name: str, **changes) -> dict:
    """The config of a study with tiny data, model and ground truth."""
    config = yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text())
    study = config["studies"][name]
    for stage in study["stages"]:
        stage["training"]["epochs"] = 1
    study |= {"corpus": CORPORA[name], "model": MODEL, "estimators": ESTIMATORS}
    study |= {"ground_truth": {"subsets": 3, "repeats": 3, "shards": 1}, **changes}
    return config


def finish(folder: Path, config: dict, *targets: str) -> None:
    """Run the workflow to these targets, figures and others."""
    finished = snakemake(copy_workflow(folder, config), *targets)
    assert finished.returncode == 0, finished.stdout
    for figure in (target for target in targets if target.endswith(".png")):
        assert (folder / figure).stat().st_size > 10_000


def run(name: str, folder: Path) -> tuple[pd.DataFrame, str]:
    """The table and the page of proponents of a tiny study."""
    results = folder / "results" / name
    finish(folder, tiny(name), *(f"results/{name}/{file}" for file in ("spearman.png", "proponents.md")))
    return pd.read_csv(results / "evaluation.csv").set_index("estimator"), (results / "proponents.md").read_text()


def test_documents_of_two_stages_of_three_share_one_table(tmp_path):
    table, page = run("midtraining", tmp_path)
    assert list(table.index) == ESTIMATORS
    assert table[["lds", "lds_pretraining", "lds_midtraining"]].notna().all(axis=None)
    assert "| pretraining |" in page
    assert "| midtraining |" in page


def test_where_the_head_was_replaced_the_table_says_what_is_undefined(tmp_path):
    table, page = run("speeches", tmp_path)
    assert table.loc["singlestage-ekfac", "undefined"] == "undefined: the head was replaced"
    defined = table.drop("singlestage-ekfac")
    assert set(table.index) == set(ESTIMATORS)
    assert defined[["lds", "scoring_seconds"]].notna().all(axis=None)
    assert defined["undefined"].isna().all()
    assert "Right answer: Democratic" in page


def test_validation_compares_with_a_converged_reference_and_times_models_of_several_sizes(tmp_path):
    sizes = [{"hidden_size": width} for width in (8, 12, 16)]
    config = tiny(
        "validation",
        estimators=["multistage-ekfac", "reference", "reference-check"],
        cost={"sizes": sizes, "documents": 4, "queries": 2, "repeats": 1},
    )
    finish(tmp_path, config, "results/figures/spearman_cg.png", "results/figures/cost_by_size.png")
    results = tmp_path / "results/validation"
    table = pd.read_csv(results / "agreement.csv").set_index("estimator")
    assert list(table.index) == ["multistage-ekfac"]
    assert table.notna().all(axis=None)
    summary = json.loads((results / "agreement.json").read_text())
    assert summary["agreement_of_two_runs"]["spearman"] > 0.99
    times = pd.read_csv(results / "cost_by_size.csv")
    assert times["hidden_size"].unique().tolist() == [8, 12, 16]
    growth = json.loads((results / "cost_by_size.json").read_text())["growth"]
    assert {row["step"] for row in growth} == set(times["step"])
