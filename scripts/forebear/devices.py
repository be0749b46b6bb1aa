"""Which GPUs a job may use: leases, so that two jobs on one machine never share one by accident.

What is there at all says CUDA_VISIBLE_DEVICES, where the user or a batch system has set it;
otherwise it is every GPU of the machine. A job leases as many of those as its study asks for,
by locking a file for each, and leaves just them visible. The kernel frees the locks when the
process ends, in whatever way. Jobs of one user see each other's leases.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from pathlib import Path

from forebear.errors import ForebearError

VISIBLE = "CUDA_VISIBLE_DEVICES"
BATCH_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")  # set by SLURM, PBS and LSF in their jobs
POLL_SECONDS = 0.5


def lease_devices(count: int) -> list[str]:
    """Wait until `count` GPUs are free, and take them for the rest of this process.

    Sets CUDA_VISIBLE_DEVICES, so it has to be called before torch first uses a GPU.

    Returns:
        The names of the devices, as they stand in CUDA_VISIBLE_DEVICES.

    Raises:
        ForebearError: there are fewer than `count`.
    """
    if count == 0:
        return []
    devices = visible_devices()
    if len(devices) < count:
        raise ForebearError(
            f"the study asks for {count} GPUs, but this job sees {len(devices)} ({', '.join(devices) or 'none'}); "
            f"lower `gpus`, or check {VISIBLE} and --resources gpu."
        )
    leased = sorted(_wait_for(count, devices, _lock_folder()), key=devices.index)
    if VISIBLE not in os.environ:
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order in which nvidia-smi counts
    os.environ[VISIBLE] = ",".join(leased)
    print(f"GPUs of this job: {', '.join(leased)}", flush=True)
    return leased


def visible_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES lists, or the indices of all of the machine's GPUs."""
    if VISIBLE in os.environ:
        devices = []
        for name in os.environ[VISIBLE].split(","):
            if name.strip() in ("", "-1", "NoDevFiles"):  # CUDA, too, ignores all after such a name
                break
            devices.append(name.strip())
        return devices
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def _lock_folder() -> Path:
    """One a user; and one a batch job, because each may number its own devices from 0."""
    batch_job = next((os.environ[name] for name in BATCH_JOBS if name in os.environ), "machine")
    folder = Path(tempfile.gettempdir()) / f"forebear-devices-{os.getuid()}" / batch_job
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _wait_for(count: int, devices: list[str], folder: Path) -> list[str]:
    """Lock devices as they become free, one job at a time, so that no two wait for each other's."""
    queue = _open(folder / "queue")
    if not _lock(queue, wait=False):
        print(f"waiting for {count} of the GPUs {', '.join(devices)}, behind another job", flush=True)
        _lock(queue)
    leased: list[str] = []
    told = False
    while len(leased) < count:
        for device in devices:
            if len(leased) < count and device not in leased and _taken(folder / device.replace("/", "_")):
                leased.append(device)
        if len(leased) < count:
            if not told:
                print(f"waiting for {count} of the GPUs {', '.join(devices)}: others are in use", flush=True)
                told = True
            time.sleep(POLL_SECONDS)
    os.close(queue)
    return leased


def _taken(path: Path) -> bool:
    """Whether this process has got the lock; its descriptor then stays open until the process ends."""
    descriptor = _open(path)
    if _lock(descriptor, wait=False):
        return True
    os.close(descriptor)
    return False


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _lock(descriptor: int, wait: bool = True) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
