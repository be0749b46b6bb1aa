"""Trained models and factors are shared between workflows by Snakemake's cache, and never a stale one."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from copies import copy_workflow, snakemake
from forebear.factors.files import read_eigenvalues

FACTORS = "results/tiny/factors/pretraining/eigenvalues.h5"  # of the covariances and their eigenbasis
MODEL = "results/tiny/models/pretraining"
CACHED = ("train_stage", "fit_covariances", "compute_eigenbasis", "fit_eigenvalues")


def run_cached(folder: Path, *targets: str) -> None:
    cache = folder.parent / "cache"
    cache.mkdir(exist_ok=True)
    run = snakemake(folder, *targets, "--cache", SNAKEMAKE_OUTPUT_CACHE=str(cache))
    assert run.returncode == 0, run.stdout


def jobs_run(folder: Path) -> set[str]:
    """The cached rules that ran: a job writes to its log, what comes from the cache leaves it empty."""
    logs = folder / "results/tiny/logs"
    return {rule for rule in CACHED if any(log.stat().st_size for log in (logs / rule).rglob("*.log"))}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A clone whose run has filled the cache beside it."""
    folder = copy_workflow(tmp_path_factory.mktemp("clones") / "first")
    run_cached(folder, FACTORS)
    assert jobs_run(folder) == set(CACHED)
    return folder


@pytest.fixture
def clone(first, request) -> Path:
    """Another clone, with the same prepared data and nothing else."""
    folder = copy_workflow(first.parent / request.node.name)
    shutil.copytree(first / "results/tiny/data", folder / "results/tiny/data")
    return folder


def test_another_clone_computes_nothing_again(first, clone):
    run_cached(clone, FACTORS)
    assert jobs_run(clone) == set()
    assert (clone / FACTORS).read_bytes() == (first / FACTORS).read_bytes()
    for file in (first / MODEL).iterdir():
        assert (clone / MODEL / file.name).read_bytes() == file.read_bytes()
    assert "Nothing to be done" in snakemake(clone, FACTORS).stdout


def test_what_was_deleted_comes_back(first):
    before = (first / FACTORS).read_bytes()
    shutil.rmtree(first / "results")
    run_cached(first, FACTORS)
    assert jobs_run(first) == set()
    assert (first / FACTORS).read_bytes() == before


def test_another_point_is_another_entry(first, clone):
    run_cached(clone, FACTORS.replace("pretraining", "pretraining@finetuning"))
    assert jobs_run(clone) == set(CACHED)  # fine-tuning, and the factors at its model
    assert (clone / MODEL / "manifest.json").is_symlink()


def test_a_changed_key_is_another_entry(clone):
    config = yaml.safe_load((clone / "config.yaml").read_text())
    config["studies"]["tiny"]["label_samples"] = 2
    (clone / "config.yaml").write_text(yaml.safe_dump(config))
    run_cached(clone, FACTORS)
    assert jobs_run(clone) == {"fit_covariances", "compute_eigenbasis", "fit_eigenvalues"}


def test_an_edit_of_the_engine_is_another_entry(clone):
    with (clone / "scripts/forebear/models/training.py").open("a") as handle:
        handle.write("\nUNUSED = 1\n")
    run_cached(clone, "results/tiny/models/pretraining/manifest.json")
    assert jobs_run(clone) == {"train_stage"}


def test_another_study_is_another_entry(clone):
    config = yaml.safe_load((clone / "config.yaml").read_text())
    config["studies"] = {"other": config["studies"]["tiny"]}
    (clone / "config.yaml").write_text(yaml.safe_dump({**config, "study": "other"}))
    run_cached(clone, "results/other/models/pretraining/manifest.json")
    assert (clone / "results/other/logs/train_stage/pretraining.log").stat().st_size > 0


@pytest.mark.parametrize(
    "name", ["factors/pretraining/covariances.h5", "models/pretraining/tokenizer.json"], ids=["factors", "model"]
)
def test_an_entry_changed_by_hand_is_refused_and_made_again(first, clone, tmp_path, name: str):
    """The sentence's command also removes the entry; otherwise the cache would give it back."""
    cache = shutil.copytree(clone.parent / "cache", tmp_path / "cache")
    environment = {"SNAKEMAKE_OUTPUT_CACHE": str(cache)}
    assert snakemake(clone, FACTORS, "--cache", **environment).returncode == 0
    entry = (clone / "results/tiny" / name).resolve()
    whole = entry.read_bytes()
    assert entry.parent == cache
    entry.write_bytes(whole[:1000] + b"0" + whole[1000:])
    for following in ("eigenbasis.h5", "eigenvalues.h5"):  # what was made from it, here and in the cache
        following = clone / "results/tiny/factors/pretraining" / following
        following.resolve().unlink()
        following.unlink()

    for _ in range(2):
        refused = snakemake(clone, FACTORS, "--cache", **environment)
        assert refused.returncode == 1
        assert "Traceback" not in refused.stdout
    (command,) = set(re.findall(r"delete it and run again: (rm .*)", refused.stdout))
    subprocess.run(command, shell=True, cwd=clone, check=True)
    run = snakemake(clone, FACTORS, "--cache", **environment)
    assert run.returncode == 0, run.stdout
    again, before = (read_eigenvalues(folder / FACTORS) for folder in (clone, first))
    assert all(torch.equal(again[block], before[block]) for block in before)


def test_after_the_cache_is_deleted_its_broken_links_are_removed_and_all_is_made_again(clone, tmp_path):
    covariances = FACTORS.replace("eigenvalues", "covariances")
    cache = shutil.copytree(clone.parent / "cache", tmp_path / "cache")
    environment = {"SNAKEMAKE_OUTPUT_CACHE": str(cache)}
    assert snakemake(clone, covariances, "--cache", **environment).returncode == 0
    whole = (clone / covariances).stat().st_size
    shutil.rmtree(cache)
    refused = snakemake(clone, covariances)
    assert refused.returncode == 1
    assert "concurrent process" in refused.stdout
    subprocess.run(["find", "results", "-xtype", "l", "-delete"], cwd=clone, check=True)
    cache.mkdir()
    run = snakemake(clone, covariances, "--cache", **environment)
    assert run.returncode == 0, run.stdout
    assert (clone / covariances).resolve().parent == cache
    assert (clone / covariances).stat().st_size == whole
