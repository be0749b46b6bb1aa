"""File systems without locks: NFS without its lock daemon, Lustre without `flock`."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# The system's own answer, given by a library that is loaded before the others.
SOURCE = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("ERRNO_OF_FLOCK")); return -1; }
"""

JOB = """
import sys
import h5py
import numpy as np
import torch
from forebear.runtime.devices import lease_devices
from forebear.errors import ForebearError
from forebear.factors.files import create_factors, read_eigenvalues
from forebear.scores.files import ScoreStore
def tried(name, job):
    try:
        print(name, job())
    except ForebearError as error:
        print(name, "error:", error)
def written():
    with create_factors("e.h5", "eigenvalues", {}) as file:
        file.write({"a": torch.ones(3, 3)})
    return read_eigenvalues("e.h5")["a"].sum().item()
def scored():
    store = ScoreStore("s.h5", "e", {}, np.arange(2), "ab", "ab")
    store.write(np.arange(2), np.ones((2, 2)), "ab")
    return store.finished().sum()
tried("factors", written)
tried("scores", scored)
tried("devices", lambda: lease_devices(1))
"""


@pytest.fixture(scope="module")
def without_locks(tmp_path_factory) -> Path:
    if not (compiler := shutil.which("cc") or shutil.which("gcc")) or sys.platform != "linux":
        pytest.skip("needs a C compiler, to stand for a file system without locks")
    folder = tmp_path_factory.mktemp("library")
    (folder / "flock.c").write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "flock.so", folder / "flock.c"]
    subprocess.run(command, check=True)
    return folder / "flock.so"


def job(folder: Path, library: Path, number: int, **environment: str) -> dict[str, str]:
    """What each part of the job says."""
    told = {"LD_PRELOAD": str(library), "ERRNO_OF_FLOCK": str(number), "CUDA_VISIBLE_DEVICES": "0"}
    run = subprocess.run(
        [sys.executable, "-c", JOB],
        cwd=folder,
        env={**os.environ, **told, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return dict(line.split(" ", 1) for line in run.stdout.splitlines() if line.split(" ")[0] in PARTS)


PARTS = ("factors", "scores", "devices")


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, 524])
def test_files_that_need_no_lock_are_written_and_read_and_others_name_the_way_round(tmp_path, without_locks, number):
    said = job(tmp_path, without_locks, number)
    assert said["factors"] == "9.0"
    if number != errno.ENOSYS:  # which HDF5 takes for a file system where locks are switched off
        assert ".store/s/e.h5: lies on a file system without locks" in said["scores"]
        assert f"errno {number}); set the environment variable HDF5_USE_FILE_LOCKING=FALSE" in said["scores"]
    assert "GPUs cannot be leased there, since its file system has no locks" in said["devices"]
    assert said["devices"].endswith("set TMPDIR to a folder on a disk of this machine.")
    again = tmp_path / "again"
    again.mkdir()
    assert job(again, without_locks, number, HDF5_USE_FILE_LOCKING="FALSE")["scores"] == "4.0"


@pytest.mark.slow
def test_a_lock_that_another_process_holds_is_none_of_this(tmp_path, without_locks):
    said = job(tmp_path, without_locks, errno.EAGAIN, CUDA_VISIBLE_DEVICES="")  # a job would wait for a GPU
    assert "another process is writing it" in said["factors"]
    assert "HDF5_USE_FILE_LOCKING" not in said["factors"]
