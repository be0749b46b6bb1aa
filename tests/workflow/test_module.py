"""Another workflow imports this one, from its own folder, under another prefix and beside rules of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from copies import ROOT, copy_workflow

IMPORTING = """
configfile: "mine.yaml"


rule all:
    input:
        "summary.txt",


rule write_questions:
    output:
        "data/questions.jsonl",
    params:
        name=lambda wildcards, output: output[0],
    shell:
        "cp questions.txt {params.name}"


module forebear:
    snakefile:
        config["snakefile"]
    config:
        config["forebear"]
    prefix:
        "attribution"


use rule * from forebear as fb_*


rule summarise:
    input:
        proponents="attribution/results/tiny/proponents.md",
        table="attribution/results/tiny/evaluation.csv",
        provenance="attribution/results/tiny/provenance.json",
    output:
        "summary.txt",
    shell:
        "wc -l {input} > {output}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Another workflow, whose questions one of its own rules writes, far from the clone that it imports."""
    clone = copy_workflow(tmp_path_factory.mktemp("clone") / "forebear")
    described = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    study = described["studies"]["tiny"]
    study["corpus"] = {
        "documents": {"pretraining": "data/documents.jsonl", "finetuning": "data/pairs.jsonl"},
        "queries": "data/questions.jsonl",
    }
    study["estimators"] = ["multistage-ekfac", "multistage-ensemble", "bm25"]
    study["ground_truth"] = {"subsets": 3, "repeats": 3, "shards": 1}
    study["ensemble"] = {"members": 1}
    del study["cost"]
    folder = tmp_path_factory.mktemp("importing")
    (folder / "Snakefile").write_text(IMPORTING)
    (folder / "mine.yaml").write_text(yaml.safe_dump({"snakefile": str(clone / "Snakefile"), "forebear": described}))
    (folder / "data").mkdir()
    pairs = [{"prompt": f"The capital of {k}-land is", "completion": f" {k}-ville"} for k in "abcdef"]
    for name, records in {
        "data/documents.jsonl": [{"text": pair["prompt"] + pair["completion"]} for pair in pairs],
        "data/pairs.jsonl": pairs,
        "questions.txt": pairs[:2],
    }.items():
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a workflow where the engine of another clone is installed."""
    other = folder.parent / "installed"
    if not other.exists():
        (other / "forebear").mkdir(parents=True)
        (other / "forebear/__init__.py").write_text("raise SystemExit('the engine of another clone')\n")
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(other)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def test_a_module_plans_its_rules_under_their_new_names_and_prefix(folder):
    run = snakemake(folder, "--dry-run", "--printshellcmds")
    assert run.returncode == 0, run.stdout
    jobs = set(re.findall(r"^(\w+)  +\d+$", run.stdout, re.M)) - {"total"}
    assert {"all", "summarise", "write_questions", "fb_retrain", "fb_evaluate", "fb_gather_provenance"} <= jobs
    assert {job for job in jobs if not job.startswith("fb_")} == {"all", "summarise", "write_questions"}
    assert "attribution/results/tiny/" in run.stdout
    assert not re.search(r"(?<!attribution/)results/", run.stdout), run.stdout
    assert "attribution/data/" not in run.stdout


@pytest.mark.slow
def test_a_module_makes_what_the_importing_workflow_takes_and_a_second_run_nothing(folder):
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    assert "attribution/results/tiny/proponents.md" in (folder / "summary.txt").read_text()
    assert not (folder / "results").exists()
    results = folder / "attribution/results"
    provenance = json.loads((results / "tiny/provenance.json").read_text())
    assert "retrain/1-of-1" in provenance["jobs"]
    table = provenance["files"]["attribution/results/tiny/evaluation.csv"]
    assert table["recipe"] == json.loads((results / "tiny/.recipes/evaluation.csv.json").read_text())["recipe"]
    again = snakemake(folder)
    assert again.returncode == 0, again.stdout
    assert "Nothing to be done" in again.stdout
    shutil.rmtree(folder / ".snakemake")  # receipts alone say of what the files are
    described = yaml.safe_load((folder / "mine.yaml").read_text())
    described["forebear"]["studies"]["tiny"]["stages"][1]["damping"] = 0.2
    (folder / "mine.yaml").write_text(yaml.safe_dump(described))
    edited = snakemake(folder, "--dry-run")
    jobs = set(re.findall(r"^(\w+)  +\d+$", edited.stdout, re.M))
    assert {"fb_precondition_queries", "fb_evaluate", "summarise"} <= jobs, edited.stdout
    assert not {"fb_train_stage", "fb_fit_covariances", "fb_retrain"} & jobs, edited.stdout


def test_the_engine_says_where_its_workflow_lies(tmp_path):
    def ask(engine: Path) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "forebear.workflow.snakefile"]
        environment = {**os.environ, "PYTHONPATH": str(engine)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    assert ask(ROOT / "scripts").stdout == f"{ROOT / 'Snakefile'}\n"
    shutil.copytree(ROOT / "scripts/forebear", tmp_path / "site-packages/forebear")
    alone = ask(tmp_path / "site-packages")
    assert alone.returncode == 1
    assert re.fullmatch(r"error: .*Snakefile: there is no such file; .* are in a clone: .*\n", alone.stderr)
