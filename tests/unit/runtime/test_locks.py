"""Files that another process keeps locked, and file systems without locks: NFS without its lock daemon, Lustre without `flock`."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from forebear.artifacts.growing import Store
from forebear.artifacts.hdf5 import open_checked
from forebear.errors import OutOfReachError
from forebear.factors.files import create_factors, read_eigenvalues
from forebear.runtime.holders import holders

NOTEBOOK = """
import sys
import h5py
file = h5py.File(sys.argv[1], sys.argv[2])
print("open", flush=True)
input()
"""


@contextmanager
def opened_elsewhere(path: Path, mode: str) -> Iterator[int]:
    """Another process has the file open while the block runs; gives its number."""
    command = [sys.executable, "-c", NOTEBOOK, path, mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as notebook:
        assert notebook.stdout.readline() == "open\n"
        yield notebook.pid
        notebook.communicate("\n")


@pytest.fixture
def factors(tmp_path) -> Path:
    with create_factors(tmp_path / "e.h5", "eigenvalues", {}) as file:
        file.write({"a": torch.ones(3, 3)})
    return tmp_path / "e.h5"


@pytest.mark.parametrize("mode", ["r+", "a"])
def test_a_file_that_a_notebook_has_open_for_writing_is_not_called_damaged(factors, mode: str):
    with opened_elsewhere(factors, mode) as process, pytest.raises(OutOfReachError) as refused:
        read_eigenvalues(factors)
    said = str(refused.value)
    assert said.startswith(f"{factors}: another process has it open for writing (")
    assert "damaged" not in said
    assert "rm " not in said
    assert "HDF5_USE_FILE_LOCKING=FALSE" in said
    if sys.platform == "linux":
        assert f"(process {process} ({sys.executable} -c import sys import h5py " in said
    assert read_eigenvalues(factors)["a"].sum() == 9


def test_a_file_that_a_notebook_reads_is_read_and_made_anew(factors):
    with opened_elsewhere(factors, "r"):
        assert read_eigenvalues(factors)["a"].sum() == 9
        with create_factors(factors, "eigenvalues", {}) as file:
            file.write({"a": torch.zeros(3, 3)})
        assert read_eigenvalues(factors)["a"].sum() == 0


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_store_that_another_process_has_open_is_not_begun_anew(tmp_path, mode: str, finished: bool):
    store = Store(tmp_path / "s.h5", "scores", {}, "ab", parts=2)
    store.by_part("matrix", np.float32)[:] = 1
    store.mark(np.array([0]), store.rows)
    if finished:
        store.seal({})
    del store
    with opened_elsewhere(tmp_path / "s.h5", mode), pytest.raises(OutOfReachError, match="another process has it"):
        Store(tmp_path / "s.h5", "scores", {}, "abc", parts=2)
    assert Store(tmp_path / "s.h5", "scores", {}, "ab", parts=2).written.tolist() == [[True, True], [False, False]]


def test_who_holds_a_file_is_told_by_the_system_alone(factors, tmp_path):
    assert holders(tmp_path / "none") == holders(factors) == []
    with h5py.File(factors, "r"):
        told = holders(factors)
    assert [name.split()[:2] for name in told] == ([["process", str(os.getpid())]] if sys.platform == "linux" else [])


def test_a_file_that_the_system_does_not_let_be_read_is_not_called_damaged(tmp_path):
    """A folder stands for a disk that fails, or a file of another user's, as root may read everything."""
    (tmp_path / "e.h5").mkdir()
    with (
        pytest.raises(OutOfReachError, match=r"e\.h5: could not be read \(Is a directory\)"),
        open_checked(tmp_path / "e.h5", None),
    ):
        pass


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
    assert "another process has it open (which one, the system does not tell)" in said["factors"]
    assert "HDF5_USE_FILE_LOCKING" not in said["factors"]
