"""Progress with rate and remaining time: a live bar on a terminal, sparse lines in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

LOG_SECONDS = 10.0  # between two lines in a log
OUTSIDE_FD = "FOREBEAR_OUTSIDE_FD"  # stderr before jobs.start sent it to a log

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, unit: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items`, showing how far it has come and how long the rest will take.

    Args:
        total: how many there are, if `items` does not know it; without it only the rate is shown.
    """
    total = len(items) if isinstance(items, Sized) else total
    terminal, log = _terminal(), None if sys.stderr.isatty() else sys.stderr
    options = {"leave": False, "file": terminal or sys.stderr, "disable": None, "dynamic_ncols": True}
    bar = tqdm(items, desc=description, unit=unit, total=total, **options)
    started = logged = time.monotonic()
    done = 0
    for item in bar:
        now = time.monotonic()
        if log is not None and now - logged >= LOG_SECONDS:
            logged = now
            print(
                tqdm.format_meter(done, total, now - started, prefix=description, unit=unit, ncols=0),
                file=log,
                flush=True,
            )
        yield item
        done += 1
    if log is not None:
        seconds = time.monotonic() - started
        print(f"{description}: {done} × {unit} in {seconds:.1f} s", file=log, flush=True)


def _terminal():
    """The terminal that a job was started from, if there is one."""
    fd = os.environ.get(OUTSIDE_FD)
    return os.fdopen(os.dup(int(fd)), "w") if fd is not None and os.isatty(int(fd)) else None
