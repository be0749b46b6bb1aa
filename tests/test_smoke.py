"""The whole workflow once, on the smallest study with a job of every kind."""

import json
import shutil

import pandas as pd

from conftest import SECRET
from copies import snakemake


def test_figure_table_and_proponents_are_there(finished_study):
    assert (finished_study / "results/figures/spearman.png").stat().st_size > 10_000
    table = pd.read_csv(finished_study / "results/tiny/evaluation.csv")
    assert "multistage-ekfac" in set(table.estimator)
    assert table[["lds", "seconds_per_pair", "peak_mib"]].notna().all(axis=None)
    assert "What is the capital of" in (finished_study / "results/tiny/proponents.md").read_text()


def test_the_second_run_does_nothing(finished_study):
    run = snakemake(finished_study)
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout


def test_provenance_tells_of_every_job_and_figure(finished_study):
    provenance = json.loads((finished_study / "results/tiny/provenance.json").read_text())
    assert {"results/tiny/spearman.png", "results/tiny/evaluation.csv"} <= set(provenance["files"])
    assert {path for path in provenance["files"] if not (finished_study / path).exists()} == set()
    model = provenance["files"]["results/tiny/models/finetuning/manifest.json"]
    covariances = provenance["files"]["results/tiny/factors/finetuning/covariances.h5"]
    assert covariances["model_digest"] == model["model_digest"]
    ended = [
        str(log.relative_to(finished_study / "results/tiny/logs"))
        for log in finished_study.glob("results/tiny/logs/**/*.log")
    ]
    assert {f"{job}.log" for job in provenance["jobs"]} == set(ended)
    assert all(job["seconds"] > 0 and job["peak_bytes"] > 1e7 and job["device"] for job in provenance["jobs"].values())


def test_the_report_is_one_file_and_no_token_gets_into_it_or_into_results_and_logs(finished_study, tmp_path):
    folder = shutil.copytree(finished_study, tmp_path / "study", copy_function=shutil.copy2)
    run = snakemake(folder, "--report", "report.html", HF_TOKEN=SECRET)
    assert run.returncode == 0, run.stdout
    report = (folder / "report.html").read_text()
    for part in ("spearman.png", "proponents.html", "evaluation.html", "provenance.json", "fit_covariances"):
        assert part in report
    assert "The dashed line is what another retraining" in report  # a caption
    assert '<script src="http' not in report
    texts = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [path for path, content in texts.items() if SECRET.encode() in content] == []


def test_nothing_half_written_is_left(finished_study):
    assert [path for path in (finished_study / "results").rglob("*") if "partial" in path.name] == []
