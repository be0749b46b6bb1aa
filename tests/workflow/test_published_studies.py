"""The studies of published models, on tiny checkpoints of the same names from a server of the hub's protocol."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from copies import ROOT
from loopback_hub import Hub, serving
from published import published_data, published_models


def snakemake(folder: Path, study: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a study as it is published, but without GPUs, in `folder`."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", *arguments]
    small = folder / "small.yaml"
    small.write_text(yaml.safe_dump({"studies": {study: {"gpus": 0, "threads": 1}}}))
    return subprocess.run(
        [*command, "--configfile", str(ROOT / f"studies/{study}.yaml"), str(small)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "HF_HOME": str(folder / "home"), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A working folder with the data of both studies."""
    published_data(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("study", ["bloom", "dolly"])
def test_a_published_study_runs_from_the_hub_to_its_tables(study, folder, tmp_path):
    targets = [f"results/{study}/evaluation.csv", f"results/{study}/proponents.md"]
    with serving(Hub(published_models(study, tmp_path))) as hub:
        run = snakemake(folder, study, *targets, HF_ENDPOINT=hub.url)
    assert run.returncode == 0, run.stdout
    table = pd.read_csv(folder / targets[0]).set_index("estimator")
    assert {"multistage-ekfac", "gradient-dot", "bm25"} <= set(table.index)
    assert table.seconds_per_pair.notna().all()
    if study == "bloom":
        assert table[["mrr", "recall_at_10", "map"]].notna().all(axis=None)
        assert "top_k_accuracy" in json.loads((folder / "results/bloom/evaluation.json").read_text())
    assert "**For the answer**" in (folder / targets[1]).read_text()
    figure = snakemake(folder, study, f"results/{study}/spearman.png", "--dry-run")
    assert figure.returncode == 1
    assert "there is no LDS" in figure.stdout


@pytest.mark.parametrize(("study", "gpus"), [("bloom", 1), ("dolly", 2)])
def test_a_dry_run_needs_no_network_and_no_data_and_lists_what_jobs_take(study, gpus, tmp_path):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", "--cores", "2"]
    run = subprocess.run(
        [*command, "--resources", "gpu=2", "--configfile", str(ROOT / f"studies/{study}.yaml")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "HF_ENDPOINT": "http://127.0.0.1:1"},
        text=True,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    shown = run.stdout + run.stderr
    jobs = [line for line in shown.splitlines() if re.match(r"Job \d+: ", line)]
    assert all(re.search(r"\[\d threads, \d+ MB[],]", line) for line in jobs)
    on_models = [line for line in jobs if "GPUs" in line]
    assert len(on_models) >= 13
    without = [line for line in on_models if "the baseline bm25" in line or "the baseline random" in line]
    assert without
    assert all(", 2000 MB, 0 GPUs]" in line for line in without)
    on_models = [line for line in on_models if line not in without]
    assert all(re.search(rf", {gpus} GPUs[];]", line) for line in on_models)
