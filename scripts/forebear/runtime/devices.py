"""Which GPUs a job may use: leases, so that two jobs on one machine never share one by accident.

What is there at all says CUDA_VISIBLE_DEVICES, where the user or a batch system has set it;
otherwise it is every GPU of the machine. A job leases as many of those as its study asks for,
by locking a file for each, and leaves just them visible. The kernel frees the locks when the
process ends, in whatever way. Jobs of one user see each other's leases.
"""

import fcntl
import hashlib
import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from forebear.errors import ForebearError

VISIBLE = "CUDA_VISIBLE_DEVICES"
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
    leased = _wait_for(count, _lock_files(devices))
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
        return list(dict.fromkeys(devices))
    return list(_installed_devices())


def _lock_files(devices: list[str]) -> dict[str, Path]:
    """A file for each device, by its unique name where the driver tells it.

    A batch system may number the devices of each of its jobs from 0, so an index is not unique.
    """
    folder = Path(tempfile.gettempdir()) / f"forebear-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    unique = _installed_devices()
    return {device: folder / unique.get(device, device).replace("/", "_") for device in devices}


def _installed_devices() -> dict[str, str]:
    """index → unique name of all GPUs that the driver shows to this process."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, check=True, text=True, capture_output=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(line.split(", ") for line in lines)


def _wait_for(count: int, files: dict[str, Path]) -> list[str]:
    """Devices, locked as soon as enough are free; of jobs that see the same ones, the first gets them first."""
    waiting = f"waiting for {count} of the GPUs {', '.join(files)}, which other jobs use or wait for"
    names = " ".join(sorted(file.name for file in files.values()))
    folder = next(iter(files.values())).parent
    queue = _open(folder / f"queue-{hashlib.sha256(names.encode()).hexdigest()[:16]}")
    if not _lock(queue, wait=False):
        print(waiting, flush=True)
        _lock(queue)
    leased = _take(count, files)
    if not leased:
        print(waiting, flush=True)
    while not leased:
        time.sleep(POLL_SECONDS)
        leased = _take(count, files)
    os.close(queue)
    return leased


def _take(count: int, files: dict[str, Path]) -> list[str]:
    """Lock `count` devices or none, so that jobs that see different ones never wait for each other in a circle.

    The locks last until the process ends, because their descriptors are never closed.
    """
    held: dict[str, int] = {}
    for device, file in files.items():
        if len(held) < count:
            held[device] = _open(file)
            if not _lock(held[device], wait=False):
                os.close(held.pop(device))
    if len(held) == count:
        return list(held)
    for descriptor in held.values():
        os.close(descriptor)
    return []


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _lock(descriptor: int, wait: bool = True) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise ForebearError(
            f"{tempfile.gettempdir()}: GPUs cannot be leased there, since its file system has no locks "
            f"({error.strerror}); set TMPDIR to a folder on a disk of this machine."
        ) from error
    return True


def device_for(gpus: int) -> torch.device:
    """The CPU, or the first of `gpus` devices.

    Raises:
        ForebearError: fewer devices are visible than the job asked for.
    """
    if gpus == 0:
        return torch.device("cpu")
    if torch.cuda.device_count() < gpus:
        raise ForebearError(
            f"the study asks for {gpus} GPUs, but this job sees {torch.cuda.device_count()}; "
            "lower `gpus`, or check --resources gpu and CUDA_VISIBLE_DEVICES."
        )
    return torch.device("cuda:0")
