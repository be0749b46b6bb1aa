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

from copies import snakemake

SCORES = "results/tiny/scores/pretraining/multistage-ekfac.h5"
PARTIAL = "results/tiny/scores/pretraining/.multistage-ekfac.h5.partial"
PASS = "results/tiny/logs/compute_pairwise_scores/pretraining_at_pretraining.log"

# In a copy, scores are written after every batch, and a test may stop the pass after the third, or kill a job
# in its third retraining. This stands where no digest of code looks, so that nothing finished runs again.
STOPPABLE = """

_start = start


def start(job):
    _start(job)
    if "/compute_pairwise_scores/" in job.log[0]:
        _make_the_pass_stoppable()
    if "/retrain/" in job.log[0]:
        _make_retraining_killable()


def _make_the_pass_stoppable():
    import signal

    from forebear.artifacts.growing import ResumableMatrix
    from forebear.scores import pairwise

    pairwise.FLUSH_SECONDS = -1.0
    write, writes = ResumableMatrix.write, []

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        writes.append(self.path.name)
        if writes.count("multistage-ekfac.h5") == 3:
            if "KILLED" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            while os.path.exists(os.environ.get("HELD_BY", "")):
                time.sleep(0.1)

    ResumableMatrix.write = write_and_stop


def _make_retraining_killable():
    import signal

    from forebear.ground_truth import retrain

    whole, begun = retrain.retrain, []

    def retrain_or_die(*arguments):
        begun.append(arguments)
        if "KILLED" in os.environ and len(begun) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments)

    retrain.retrain = retrain_or_die
"""


@pytest.fixture(scope="module")
def finished(finished_study, tmp_path_factory) -> Path:
    """The finished study, with jobs that can be stopped."""
    folder = tmp_path_factory.mktemp("finished") / "study"
    shutil.copytree(finished_study, folder, copy_function=shutil.copy2)
    with (folder / "scripts/forebear/runtime/job.py").open("a") as handle:
        handle.write(STOPPABLE)
    assert "Nothing to be done" in snakemake(folder).stdout
    return folder


@pytest.fixture
def workspace(finished, tmp_path) -> Path:
    """A copy of the finished study, free to be broken."""
    return shutil.copytree(finished, tmp_path / "workspace", copy_function=shutil.copy2)


def matrix(folder: Path, path: str = SCORES) -> np.ndarray:
    with h5py.File(folder / path) as file:
        return file["matrix"][()]


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
    with h5py.File(folder / PARTIAL) as file:
        assert 0 < file["written"][()].sum() < len(file["written"])


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
    wait_for(lambda: (workspace / PARTIAL).exists() and (workspace / PARTIAL).stat().st_size > 0)

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
    wait_for(lambda: (workspace / SCORES).exists())
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
    assert len(weights) == 8  # of the seven retrainings, this shard has four
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
    estimators, bank = ("multistage-ekfac", "gradient-dot", "bm25"), "results/tiny/ground_truth/bank.h5"
    scores = [f"results/tiny/scores/pretraining/{estimator}.h5" for estimator in estimators]
    run = snakemake(workspace, *scores, bank, "--cores", "1")
    assert run.returncode == 0, run.stdout
    for path in scores:
        assert np.array_equal(matrix(workspace, path), matrix(finished, path))
    with h5py.File(workspace / bank) as one, h5py.File(finished / bank) as two:
        assert np.array_equal(one["measurements"][()], two["measurements"][()])


def test_a_pass_that_fails_leaves_no_scores_from_before_the_change(workspace, finished):
    """As Snakemake's update() would: it restores the old file as the newest, and nothing is to be done."""
    set_damping(workspace)
    assert snakemake(workspace, SCORES, KILLED="1").returncode == 1
    assert not (workspace / SCORES).exists()
    run = snakemake(workspace, SCORES)
    assert run.returncode == 0, run.stdout
    assert not np.allclose(matrix(workspace), matrix(finished))
