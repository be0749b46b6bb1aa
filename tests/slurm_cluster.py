"""A real SLURM of one machine, with two character devices in place of GPUs, for tests."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue")
SYSTEM_CONFIG = Path("/etc/slurm")  # a job step finds the cluster's configuration only here
CONFIG_FILES = ("slurm.conf", "gres.conf")
DAEMONS = ("slurmd", "slurmctld", "munged")

CONFIG = """
ClusterName=onebox
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:a100:2 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=24:00:00 State=UP
"""


def why_not() -> str | None:
    """Why a cluster cannot be started here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"SLURM is not installed (no {', '.join(missing)}): apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "SLURM's daemons and its devices need root"
    for name in CONFIG_FILES:
        if os.path.lexists(SYSTEM_CONFIG / name) and not _left_behind(SYSTEM_CONFIG / name):
            return f"this machine belongs to a SLURM cluster already ({SYSTEM_CONFIG / name})"
    return None


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def wait_until(condition: Callable[[], object], what: str, seconds: float = 600) -> None:
    """Poll until the condition holds.

    Raises:
        TimeoutError: it did not within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s until {what}")
        time.sleep(0.5)


@contextmanager
def one_machine_cluster(folder: Path) -> Iterator[None]:
    """Start munge and SLURM with their files in `folder`; stop them, and their jobs, at the end."""
    _write_files(folder)
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    links = [SYSTEM_CONFIG / name for name in CONFIG_FILES]
    SYSTEM_CONFIG.mkdir(exist_ok=True)
    try:
        for link in links:
            if _left_behind(link):
                _remove(link)
            link.symlink_to(folder / link.name)
        run, munge = folder / "run", folder / "munge"
        subprocess.run(
            [
                "munged",
                "--force",
                f"--key-file={munge}/munge.key",
                f"--socket={run}/munge.socket",
                f"--pid-file={run}/munged.pid",
                f"--seed-file={munge}/munged.seed",
                f"--log-file={folder}/log/munged.log",
            ],
            check=True,
        )
        subprocess.run(["slurmctld"], check=True)
        subprocess.run(["slurmd"], check=True)
        wait_until(lambda: "idle" in output_of("sinfo", "-h", "-o", "%t"), "the node is idle")
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        for name in DAEMONS:
            _stop(folder / f"run/{name}.pid")
        for link in links:
            link.unlink(missing_ok=True)
        lock.close()


def _left_behind(config: Path) -> bool:
    """Whether a file in SYSTEM_CONFIG is a link of a test run that was killed: the kernel has let go of its lock."""
    if not config.is_symlink():
        return False
    if not config.exists():
        return True  # its temporary folder has been cleared away
    lock = config.readlink().parent / "lock"
    if not lock.exists():
        return False
    with lock.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _remove(link: Path) -> None:
    """Remove a link that was left behind, and stop what is left of its cluster."""
    for name in DAEMONS:
        _stop(link.readlink().parent / f"run/{name}.pid")
    link.unlink()


def _write_files(folder: Path) -> None:
    for name in ("munge", "state", "spool", "log", "run"):
        (folder / name).mkdir(parents=True)
    for path, mode in {".": 0o755, "munge": 0o755, "run": 0o755, "log": 0o700}.items():
        (folder / path).chmod(mode)
    key = folder / "munge/munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(1024))
    for k in (0, 1):  # SLURM hands on only devices; these are two more names of /dev/null
        os.mknod(folder / f"gpu{k}", 0o666 | 0o020000, os.makedev(1, 3))
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, host=host, ports=_free_ports(2)))
    (folder / "gres.conf").write_text(f"Name=gpu Type=a100 File={folder}/gpu[0-1]\n")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]
    finally:
        for item in sockets:
            item.close()


def _stop(pid_file: Path) -> None:
    if pid_file.exists():
        pid = int(pid_file.read_text())
        if runs(pid, pid_file.stem):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not runs(pid, pid_file.stem), f"{pid_file.stem} has stopped", seconds=30)


def runs(pid: int, name: str) -> bool:
    """Whether a process of this name is there and not merely waiting to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return f"({name})" in stat and stat.rpartition(")")[2].split()[0] != "Z"
