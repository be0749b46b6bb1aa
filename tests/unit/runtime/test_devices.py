"""Leases of GPUs between processes. CUDA_VISIBLE_DEVICES stands for devices; none is touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forebear.errors import ForebearError
from forebear.runtime.devices import lease_devices

JOB = """
import os, sys
from forebear.runtime.devices import lease_devices
lease_devices(int(sys.argv[1]))
print("has", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


class Job:
    """A process that leases GPUs and keeps them until it is ended."""

    def __init__(self, count: int, **environment: str):
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(count)],
            env={**os.environ, **environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def waits(self) -> bool:
        return self.process.stdout.readline().startswith("waiting")

    def devices(self) -> str:
        """Blocks until the job has its devices."""
        return next(line for line in self.process.stdout if line.startswith("has")).split()[1]

    def end(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(timeout=30) == 0


@pytest.fixture(autouse=True)
def two_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


@pytest.fixture
def start():
    jobs = []

    def start(*arguments, **environment) -> Job:
        jobs.append(Job(*arguments, **environment))
        return jobs[-1]

    yield start
    for job in jobs:
        job.process.kill()
        job.process.wait()


def test_one_gpu_jobs_never_share_a_device(start):
    first, second = start(1), start(1)
    assert {first.devices(), freed := second.devices()} == {"0", "1"}
    third = start(1)
    assert third.waits()
    second.end()
    assert third.devices() == freed


def test_a_two_gpu_job_waits_for_both(start):
    single = start(1)
    assert single.devices() == "0"
    double = start(2)
    assert double.waits()
    single.end()
    assert double.devices() == "0,1"


def test_two_two_gpu_jobs_run_one_after_the_other(start):
    first = start(2)
    assert first.devices() == "0,1"
    second = start(2)
    assert second.waits()
    first.end()
    assert second.devices() == "0,1"


def test_a_killed_job_frees_its_devices(start):
    killed = start(2)
    assert killed.devices() == "0,1"
    killed.process.kill()
    assert start(2).devices() == "0,1"


def test_only_devices_that_were_visible_before_are_leased(start):
    assert start(2, CUDA_VISIBLE_DEVICES="5,3,7").devices() == "5,3"


def driver(folder: Path, *devices: str) -> str:
    """A PATH on which `nvidia-smi` lists these devices."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    lines = "".join(f"{index}, {name}\\n" for index, name in enumerate(devices))
    program.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_without_a_variable_the_machine_is_asked(start, tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert start(2, PATH=driver(tmp_path / "bin", "GPU-a", "GPU-b", "GPU-c")).devices() == "0,1"


def test_batch_jobs_that_number_their_devices_from_0_do_not_wait(start, tmp_path):
    for name in ("a", "b"):  # each job sees one device only, and calls it 0
        path = driver(tmp_path / name, f"GPU-{name}")
        assert start(1, PATH=path, CUDA_VISIBLE_DEVICES="0").devices() == "0"


def test_a_device_is_the_same_by_index_and_by_name(start, tmp_path):
    path = driver(tmp_path / "bin", "GPU-a", "GPU-b")
    assert start(1, PATH=path, CUDA_VISIBLE_DEVICES="1").devices() == "1"
    assert start(1, PATH=path, CUDA_VISIBLE_DEVICES="GPU-b").waits()


def test_jobs_that_see_other_devices_do_not_queue(start):
    assert start(1, CUDA_VISIBLE_DEVICES="0").devices() == "0"
    assert start(1, CUDA_VISIBLE_DEVICES="0").waits()
    assert start(1, CUDA_VISIBLE_DEVICES="1").devices() == "1"


@pytest.mark.parametrize("visible", ["0", "", "-1", "NoDevFiles", "0,-1,1", "0,0"])
def test_fewer_devices_than_asked_for_is_one_sentence(visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ForebearError, match="asks for 2 GPUs, but this job sees"):
        lease_devices(2)


def test_a_study_without_gpus_leases_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert lease_devices(0) == []


@pytest.mark.parametrize("params", ["gpus=1", "loading={'gpus': 1}"])
def test_a_job_leases_its_gpus_when_it_starts(tmp_path, params: str):
    script = f"""
import os
from types import SimpleNamespace
from snakemake.iocontainers import Params
from forebear.runtime.job import start
params = Params(fromdict=dict(recipe="r", results="results", {params}))
start(SimpleNamespace(log=["log"], threads=1, input=[], output=[], params=params))
print("has", os.environ["CUDA_VISIBLE_DEVICES"])
"""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "7,8", "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "log").read_text().splitlines()[1] in ("has 7", "has 8")
