"""Runs that are killed, locked out, or robbed of a file: nothing finished is lost, nothing wrong is used."""

import json
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
import pandas as pd
import pytest
import yaml

from copies import snakemake
from disks import kept_full, small_disk

TABLE, FIGURE = "results/tiny/evaluation.csv", "results/figures/spearman.png"
SCORES = "results/tiny/scores/pretraining/at_pretraining.h5"
SHARD = "results/tiny/scores/pretraining/at_pretraining/1-of-1.h5"
STORE = "results/tiny/scores/pretraining/at_pretraining/.store/1-of-1/multistage-ekfac.h5"
PASS = "results/tiny/logs/compute_pairwise_scores/pretraining_at_pretraining/1-of-1.log"

# In a copy, scores are written after every batch, and a test may stop the pass after the third, or kill a job
# in its third retraining, or before its factors have their name. This stands where no digest of code looks, so that nothing finished runs again.
STOPPABLE = """

_start = start


def start(job):
    _start(job)
    if "/compute_pairwise_scores/" in job.log[0]:
        _make_the_pass_stoppable()
    if "/retrain/" in job.log[0]:
        _make_retraining_killable()
    if "/fit_covariances/" in job.log[0] and "KILLED_AT_FACTORS" in os.environ:
        _kill_where_factors_are_written()


def _make_the_pass_stoppable():
    import signal

    from forebear.scores import pairwise
    from forebear.scores.files import ScoreStore

    pairwise.FLUSH_SECONDS = -1.0
    write, writes = ScoreStore.write, []

    def write_and_stop(self, *arguments):
        write(self, *arguments)
        writes.append(self._store.path.name)
        if writes.count("multistage-ekfac.h5") == 3:
            if "KILLED" in os.environ:
                os.kill(os.getpid(), signal.SIGKILL)
            while os.path.exists(os.environ.get("HELD_BY", "")):
                time.sleep(0.1)

    ScoreStore.write = write_and_stop


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


def _kill_where_factors_are_written():
    import signal

    from forebear.factors.files import FactorWriter

    write = FactorWriter.write

    def write_and_die(self, *arguments):
        write(self, *arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    FactorWriter.write = write_and_die
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


def matrix(folder: Path, path: str = SCORES, estimator: str = "multistage-ekfac") -> np.ndarray:
    with h5py.File(folder / path) as file:
        return file[estimator]["matrix"][()]


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["studies"]["tiny"].update(changes)
    path.write_text(yaml.safe_dump(config))


def set_damping(folder: Path) -> None:
    stages = yaml.safe_load((folder / "config.yaml").read_text())["studies"]["tiny"]["stages"]
    stages[1]["damping"] = 10.0
    edit(folder, stages=stages)


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
    assert "another process has it open (process " in third.stdout

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
    bank, folder = "results/tiny/ground_truth/bank.h5", "results/tiny/scores/pretraining"
    scores = {f"{folder}/at_pretraining.h5": "multistage-ekfac", f"{folder}/bm25.h5": "bm25"}
    run = snakemake(workspace, *scores, bank, "--cores", "1")
    assert run.returncode == 0, run.stdout
    for path, estimator in scores.items():
        assert np.array_equal(matrix(workspace, path, estimator), matrix(finished, path, estimator))
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


# The last three are digests of a whole file, or of one that it was made from.
MEASURED = {"seconds", "peak_bytes", "overhead_seconds", "content", "columns_origin", "origin"}


def without_measurements(path: Path) -> object:
    """What a file holds, but for times and memory; a figure shows both."""
    if path.suffix == ".png":
        return None
    if path.suffix == ".h5":
        values: dict[str, object] = {}
        with h5py.File(path) as file:
            values["attributes"] = {key: str(value) for key, value in file.attrs.items() if key not in MEASURED}
            file.visititems(
                lambda name, item: values.update({name: item[()].tobytes()} if isinstance(item, h5py.Dataset) else {})
            )
        return values
    if path.name == "evaluation.csv":
        table = pd.read_csv(path)
        return table.drop(columns=[name for name in table if "seconds" in name or "mib" in name]).to_csv()
    if path.suffix == ".json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key not in ("cost", "mtime_ns")}
    return path.read_bytes()


def results(folder: Path) -> dict[str, object]:
    """Path → content, of all that jobs made, receipts included."""
    files = [path for path in (folder / "results").rglob("*") if path.is_file() and path.suffix != ".log"]
    return {
        str(path.relative_to(folder)): without_measurements(path)
        for path in files
        if not path.name.startswith(".") and ".store" not in path.parts
    }


def assert_as_undisturbed(workspace: Path, undisturbed: Path) -> None:
    """Both are run to the end, and then hold the same bits."""
    for folder in (workspace, undisturbed):
        run = snakemake(folder, FIGURE)
        assert run.returncode == 0, run.stdout
    here, there = results(workspace), results(undisturbed)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []


def test_an_edit_is_not_forgotten_where_the_job_of_the_factors_is_killed(workspace, finished, tmp_path):
    undisturbed = shutil.copytree(workspace, tmp_path / "undisturbed", copy_function=shutil.copy2)
    for folder in (workspace, undisturbed):
        script = folder / "scripts/fit_covariances.py"
        script.write_text(script.read_text().replace("(params.seed, ", "(params.seed + 1, "))
    run = snakemake(workspace, FIGURE, KILLED_AT_FACTORS="1")
    assert run.returncode == 1
    assert "Error in rule fit_covariances" in run.stdout
    assert_as_undisturbed(workspace, undisturbed)
    assert not np.array_equal(matrix(workspace), matrix(finished))


def test_an_edit_is_not_forgotten_where_the_disk_is_full(workspace, tmp_path):
    undisturbed = shutil.copytree(workspace, tmp_path / "undisturbed", copy_function=shutil.copy2)
    for folder in (workspace, undisturbed):
        estimators = yaml.safe_load((folder / "config.yaml").read_text())["studies"]["tiny"]["estimators"]
        edit(folder, estimators=[name for name in estimators if name != "bm25"])
    here = workspace / "results"
    shutil.rmtree(here)
    here.mkdir()
    with small_disk(here, 64) as mounted:
        if not mounted:
            pytest.skip("this user may not mount a file system, to fill it up")
        shutil.copytree(undisturbed / "results", here, copy_function=shutil.copy2, dirs_exist_ok=True)
        with kept_full(here):
            run = snakemake(workspace, FIGURE)
        assert run.returncode == 1
        assert "Error in rule evaluate" in run.stdout
        assert not (workspace / TABLE).exists()
        assert_as_undisturbed(workspace, undisturbed)
    assert "bm25" not in (undisturbed / TABLE).read_text()
