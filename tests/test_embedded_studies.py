"""The studies midtraining and speeches, made tiny, run to their figures."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from copies import ROOT, copy_workflow, snakemake

pytestmark = pytest.mark.slow

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
}
ESTIMATORS = ["multistage-ekfac", "singlestage-ekfac", "gradient-dot", "embedding", "bm25"]


def run(name: str, folder: Path) -> tuple[pd.DataFrame, str]:
    """The table and the page of proponents of a study whose data, model and ground truth are tiny."""
    config = yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text())
    study = config["studies"][name]
    for stage in study["stages"]:
        stage["training"]["epochs"] = 1
    study |= {"corpus": CORPORA[name], "model": MODEL, "estimators": ESTIMATORS}
    study["ground_truth"] = {"subsets": 3, "repeats": 3, "shards": 1}
    results = copy_workflow(folder, config) / "results" / name
    finished = snakemake(folder, *(f"results/{name}/{file}" for file in ("spearman.png", "proponents.md")))
    assert finished.returncode == 0, finished.stdout
    assert (results / "spearman.png").stat().st_size > 10_000
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
