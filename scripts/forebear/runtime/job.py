"""What every workflow script does first: send its output to the log, say errors in a sentence.

Importing this room is cheap, so that the log also catches what heavy imports print.
"""

import atexit
import io
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from forebear.errors import ForebearError
from forebear.runtime.atomic import explained_write
from forebear.runtime.progress import OUTSIDE_FD
from forebear.runtime.receipts import joined_makings, write_receipts
from forebear.runtime.redaction import redacted

RECORD = "job: "  # begins the last line of a job's log


class Job(Protocol):
    """What Snakemake gives a script."""

    log: Sequence[str]
    threads: int
    input: Sequence[str]
    output: Sequence[str]
    params: Any  # with `recipe`, and the folder of all `results`


class _Log(io.TextIOWrapper):
    """A text stream without secrets: libraries print addresses, and an address may carry a password."""

    def write(self, text: str) -> int:
        super().write(redacted(text))
        return len(text)


def start(job: Job) -> None:
    """Redirect this process to the job's log, set its threads, lease its GPUs, and note at its end what it took and made.

    A ForebearError ends the process with its sentence and exit code 1; any other
    exception with its traceback, because then the mistake is ours.
    """
    sys.excepthook = _say
    log, threads = job.log[0], job.threads
    with explained_write(log):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.environ[OUTSIDE_FD] = str(os.dup(2))
    os.dup2(target, 1)
    os.dup2(target, 2)
    sys.stdout, sys.stderr = (
        _Log(stream.buffer, "utf-8", "replace", line_buffering=True) for stream in (sys.stdout, sys.stderr)
    )
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)
    atexit.register(_leave_record, job, joined_makings(job.input, job.params.results), time.perf_counter())
    if gpus := _gpus(job.params):
        from forebear.runtime.devices import lease_devices  # which imports torch

        lease_devices(gpus)


def _gpus(params: Any) -> int:
    """How many GPUs a job's study gives it: in its params, or in those of how it opens a model."""
    return getattr(params, "gpus", getattr(params, "loading", {}).get("gpus", 0))


def warn(sentence: str) -> None:
    """Say a warning in the log, and where the job was started from, which is what a user looks at."""
    text = f"warning: {redacted(sentence)}\n"
    print(text, end="", flush=True)
    outside = os.environ.get(OUTSIDE_FD)
    if outside is None:  # no job, but a notebook or a test, which has no log
        return
    with suppress(OSError):
        os.write(int(outside), text.encode())


def _leave_record(job: Job, made_from: dict[str, str], began: float) -> None:
    record = {"seconds": time.perf_counter() - began, "peak_bytes": _peak_bytes(), "threads": job.threads, **_device()}
    if not hasattr(sys, "last_value"):  # no exception ended the job
        write_receipts(job.output, job.params.results, job.params.recipe, made_from)
    print(RECORD + json.dumps(record), flush=True)


def _device() -> dict[str, str | int]:
    """The processor, or the GPUs if this process has used any."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {"device": f"cpu {platform.machine()}"}
    gpus = range(torch.cuda.device_count())
    return {
        "device": ", ".join(torch.cuda.get_device_name(k) for k in gpus),
        "peak_gpu_bytes": max(torch.cuda.max_memory_allocated(k) for k in gpus),
    }


def _peak_bytes() -> int:
    """The most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, ForebearError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # at once: on a full disk HDF5's own clean-up would go on complaining, or crash
    else:
        sys.__excepthook__(kind, error, traceback)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Fill the yielded dictionary with `seconds` and `peak_bytes` when the block ends."""
    cost: dict[str, float] = {}
    began = time.perf_counter()
    yield cost
    cost["seconds"] = time.perf_counter() - began
    cost["peak_bytes"] = _peak_bytes()
