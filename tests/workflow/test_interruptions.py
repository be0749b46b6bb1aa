"""Runs that are killed, locked out, or robbed of a file: nothing finished is lost, nothing wrong is used."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from copies import ROOT, copy_workflow, snakemake

pytestmark = pytest.mark.slow

SCORES = "results/tiny/scores/pretraining/at_pretraining.h5"
SHARD = "results/tiny/scores/pretraining/at_pretraining/1-of-1.h5"
STORE = "results/tiny/scores/pretraining/at_pretraining/.store/1-of-1/multistage-ekfac.h5"
PASS = "results/tiny/logs/compute_pairwise_scores/pretraining_at_pretraining/1-of-1.log"

# In the copy, scores are written after every batch, and a test may stop the pass after the third.
STOPPABLE = """

import os

_write = ScoreStore.write
_writes = []


def _write_and_stop(self, *arguments):
    import signal
    import time

    _write(self, *arguments)
    _writes.append(self._store.path.name)
    if _writes.count("multistage-ekfac.h5") == 3:
        if "KILLED" in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        while os.path.exists(os.environ.get("HELD_BY", "")):
            time.sleep(0.1)


ScoreStore.write = _write_and_stop
"""

# In the copy, a test may kill a job in its third retraining.
KILLABLE = """

import os
import signal

_retrain = retrain
_begun = []


def retrain(*arguments):
    _begun.append(arguments)
    if "KILLED" in os.environ and len(_begun) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return _retrain(*arguments)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A small study that was run to its evaluation on two cores."""
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    study = config["studies"]["tiny"]
    study.update(estimators=["multistage-ekfac", "gradient-dot", "bm25"], batch_tokens=128)
    study["ground_truth"] = {"subsets": 3, "repeats": 3, "shards": 2}
    folder = copy_workflow(tmp_path_factory.mktemp("finished"), config)
    with (folder / "scripts/forebear/scores/files.py").open("a") as handle:
        handle.write(STOPPABLE)
    with (folder / "scripts/forebear/ground_truth/retrain.py").open("a") as handle:
        handle.write(KILLABLE)
    scoring = folder / "scripts/forebear/scores/pairwise.py"
    scoring.write_text(scoring.read_text().replace("FLUSH_SECONDS = 20.0", "FLUSH_SECONDS = -1.0"))
    run = snakemake(folder, "results/tiny/evaluation.csv")
    assert run.returncode == 0, run.stdout
    return folder


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy of the finished study, free to be broken."""
    return shutil.copytree(finished, tmp_path / "workspace", copy_function=shutil.copy2)


def matrix(folder: Path, path: str = SCORES, estimator: str = "multistage-ekfac") -> np.ndarray:
    with h5py.File(folder / path) as file:
        return file[estimator]["matrix"][()]


def set_damping(folder: Path) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["studies"]["tiny"]["stages"][1]["damping"] = 10.0
    path.write_text(yaml.safe_dump(config))


def kill_the_pass(folder: Path) -> None:
    """Run the scoring pass anew, and kill it after three batches."""
    shutil.rmtree(folder / "results/tiny/scores")
    run = snakemake(folder, SCORES, KILLED="1")
    assert run.returncode == 1
    assert not (folder / SCORES).exists()
    with h5py.File(folder / STORE) as file:
        assert 0 < file["written"][()].all(1).sum() < len(file["written"])


def test_a_killed_worker_is_continued_with_the_same_result(workspace, finished):
    kill_the_pass(workspace)
    run = snakemake(workspace, SCORES)
    assert run.returncode == 0, run.stdout
    logs = [(folder / PASS).read_text() for folder in (workspace, finished)]
    batches = [int(re.search(r"^scores: (\d+) ×", log, re.MULTILINE)[1]) for log in logs]
    assert batches[0] == batches[1] - 2  # the third batch was written for one of the two estimators
    assert np.array_equal(matrix(workspace), matrix(finished))


def test_a_killed_pass_is_not_continued_after_a_change_of_damping(workspace, finished, tmp_path):
    undisturbed = shutil.copytree(workspace, tmp_path / "undisturbed", copy_function=shutil.copy2)
    kill_the_pass(workspace)
    for folder in (workspace, undisturbed):
        set_damping(folder)
        run = snakemake(folder, SCORES)
        assert run.returncode == 0, run.stdout
    assert np.array_equal(matrix(workspace), matrix(undisturbed))
    assert not np.array_equal(matrix(workspace), matrix(finished))


def test_an_orphan_of_a_killed_run_and_a_second_run_corrupt_nothing(workspace, finished):
    shutil.rmtree(workspace / "results/tiny/scores")
    held = workspace / "held"
    held.touch()
    environment = {**os.environ, "PYTHONPATH": str(workspace / "scripts"), "HELD_BY": str(held)}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", SCORES]
    first = subprocess.Popen(
        command, cwd=workspace, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: (workspace / STORE).exists() and (workspace / STORE).stat().st_size > 0)

    second = snakemake(workspace, SCORES)
    assert second.returncode == 1
    assert "Directory cannot be locked" in second.stdout
    assert "--unlock" in second.stdout

    first.send_signal(signal.SIGKILL)
    first.wait()
    assert snakemake(workspace, "--unlock").returncode == 0
    third = snakemake(workspace, SCORES, "--rerun-incomplete")
    assert third.returncode == 1
    assert "another process is writing it, perhaps left behind by a killed run" in third.stdout

    held.unlink()
    wait_for(lambda: (workspace / SHARD).exists())
    last = snakemake(workspace, SCORES, "--rerun-incomplete")
    assert last.returncode == 0, last.stdout
    assert np.array_equal(matrix(workspace), matrix(finished))


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_killed_job_loses_only_the_retraining_in_hand(workspace, finished):
    truth = workspace / "results/tiny/ground_truth"
    shutil.rmtree(truth)
    shard = "results/tiny/ground_truth/shards/1-of-2.h5"
    killed = snakemake(workspace, shard, KILLED="1")
    assert killed.returncode == 1
    kept = {path: path.stat().st_mtime_ns for path in truth.rglob("manifest.json")}
    assert len(kept) == 4  # two retrainings of two stages
    run = snakemake(workspace, shard)
    assert run.returncode == 0, run.stdout
    weights = {path.relative_to(workspace): path for path in truth.rglob("model.safetensors")}
    assert len(weights) == 6
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name, path in weights.items():
        assert path.read_bytes() == (finished / name).read_bytes()


def test_a_missing_shard_is_made_again_without_retraining(workspace, finished):
    kept = {p: p.stat().st_mtime_ns for p in (workspace / "results/tiny/ground_truth").rglob("*.safetensors")}
    shard = next(iter(sorted((workspace / "results/tiny/ground_truth/shards").iterdir())))
    shard.unlink() if shard.is_file() else shutil.rmtree(shard)
    run = snakemake(workspace, "results/tiny/ground_truth/bank.h5")
    assert run.returncode == 0, run.stdout
    assert kept
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with (
        h5py.File(workspace / "results/tiny/ground_truth/bank.h5") as a,
        h5py.File(finished / "results/tiny/ground_truth/bank.h5") as b,
    ):
        assert np.array_equal(a["measurements"][()], b["measurements"][()])


def test_a_results_folder_that_is_read_only_is_one_sentence(workspace):
    results = workspace / "results"
    shutil.rmtree(workspace / "results/tiny/scores")
    commands = [["mount", "--bind", results, results], ["mount", "-o", "remount,bind,ro", results]]
    if any(subprocess.run(command, check=False, capture_output=True).returncode for command in commands):
        pytest.skip("this user may not mount a folder read-only")
    try:
        run = snakemake(workspace, SCORES)
    finally:
        subprocess.run(["umount", "--lazy", results], check=True)
    assert run.returncode == 1
    assert "Traceback" not in run.stdout
    assert "results: cannot be written to; make it writable" in run.stdout


def test_one_worker_or_two_give_the_same_bits(workspace, finished):
    """Everything is computed again, one job after the other, with the retrainings in one shard instead of two."""
    shutil.rmtree(workspace / "results")
    config = (workspace / "config.yaml").read_text()
    (workspace / "config.yaml").write_text(config.replace("shards: 2", "shards: 1"))
    run = snakemake(workspace, "results/tiny/evaluation.csv", "--cores", "1")
    assert run.returncode == 0, run.stdout
    for estimator, name in (
        ("multistage-ekfac", "at_pretraining"),
        ("gradient-dot", "at_pretraining"),
        ("bm25", "bm25"),
    ):
        path = f"results/tiny/scores/pretraining/{name}.h5"
        assert np.array_equal(matrix(workspace, path, estimator), matrix(finished, path, estimator))
    bank = "results/tiny/ground_truth/bank.h5"
    with h5py.File(workspace / bank) as one, h5py.File(finished / bank) as two:
        assert np.array_equal(one["measurements"][()], two["measurements"][()])


def test_after_a_pass_that_fails_scores_from_before_the_change_do_not_count(workspace, finished):
    """As Snakemake's update() would: it restores the old file as the newest, and nothing is to be done."""
    set_damping(workspace)
    assert snakemake(workspace, SCORES, KILLED="1").returncode == 1
    assert not (workspace / SHARD).exists()
    assert "gather_scores" in snakemake(workspace, SCORES, "--dry-run").stdout
    run = snakemake(workspace, SCORES)
    assert run.returncode == 0, run.stdout
    assert not np.allclose(matrix(workspace), matrix(finished))
