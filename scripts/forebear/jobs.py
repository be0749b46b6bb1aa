"""What every workflow script does first: send its output to the log, say errors in a sentence.

Importing this room is cheap, so that the log also catches what heavy imports print.
"""

import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from forebear.errors import ForebearError
from forebear.progress import TERMINAL_FD
from forebear.writing import explained_write


def start(log: str, threads: int) -> None:
    """Redirect this process to `log` and set its number of threads.

    A ForebearError ends the process with its sentence and exit code 1; any other
    exception with its traceback, because then the mistake is ours.
    """
    sys.excepthook = _say
    with explained_write(log):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    if os.isatty(2):
        os.environ[TERMINAL_FD] = str(os.dup(2))
    os.dup2(target, 1)
    os.dup2(target, 2)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)


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
    cost["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
