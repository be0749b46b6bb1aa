"""Trained models and factors are shared between workflows by Snakemake's cache, and never a stale one."""

import shutil
from pathlib import Path

import pytest
import yaml

from copies import copy_workflow, snakemake

BASIS = "results/tiny/factors/pretraining/eigenbasis.h5"
MODEL = "results/tiny/models/pretraining"
CACHED = ("train_stage", "fit_covariances", "compute_eigenbasis")

pytestmark = pytest.mark.slow


def run_cached(folder: Path, *targets: str) -> None:
    cache = folder.parent / "cache"
    cache.mkdir(exist_ok=True)
    run = snakemake(folder, *targets, "--cache", SNAKEMAKE_OUTPUT_CACHE=str(cache))
    assert run.returncode == 0, run.stdout


def jobs_run(folder: Path) -> set[str]:
    """The cached rules that ran: a job writes to its log, what comes from the cache leaves it empty."""
    logs = folder / "results/tiny/logs"
    return {rule for rule in CACHED if any(log.stat().st_size for log in (logs / rule).glob("*.log"))}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A clone whose run has filled the cache beside it."""
    folder = copy_workflow(tmp_path_factory.mktemp("clones") / "first")
    run_cached(folder, BASIS)
    assert jobs_run(folder) == set(CACHED)
    return folder


@pytest.fixture
def clone(first, request) -> Path:
    """Another clone, with the same prepared data and nothing else."""
    folder = copy_workflow(first.parent / request.node.name)
    shutil.copytree(first / "results/tiny/data", folder / "results/tiny/data")
    return folder


def test_another_clone_computes_nothing_again(first, clone):
    run_cached(clone, BASIS)
    assert jobs_run(clone) == set()
    assert (clone / BASIS).read_bytes() == (first / BASIS).read_bytes()
    for file in (first / MODEL).iterdir():
        assert (clone / MODEL / file.name).read_bytes() == file.read_bytes()
    assert "Nothing to be done" in snakemake(clone, BASIS).stdout


def test_what_was_deleted_comes_back(first):
    before = (first / BASIS).read_bytes()
    shutil.rmtree(first / "results")
    run_cached(first, BASIS)
    assert jobs_run(first) == set()
    assert (first / BASIS).read_bytes() == before


def test_another_point_is_another_entry(first, clone):
    run_cached(clone, BASIS.replace("pretraining", "pretraining@finetuning"))
    assert jobs_run(clone) == set(CACHED)  # fine-tuning, and the factors at its model
    assert (clone / MODEL / "manifest.json").is_symlink()


def test_a_changed_key_is_another_entry(clone):
    config = yaml.safe_load((clone / "config.yaml").read_text())
    config["studies"]["tiny"]["label_samples"] = 2
    (clone / "config.yaml").write_text(yaml.safe_dump(config))
    run_cached(clone, BASIS)
    assert jobs_run(clone) == {"fit_covariances", "compute_eigenbasis"}


def test_an_edit_of_the_engine_is_another_entry(clone):
    with (clone / "scripts/forebear/training.py").open("a") as handle:
        handle.write("\nUNUSED = 1\n")
    run_cached(clone, "results/tiny/models/pretraining/manifest.json")
    assert jobs_run(clone) == {"train_stage"}
