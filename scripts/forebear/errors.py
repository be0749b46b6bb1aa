"""The one exception for what a user can mend: its text says what, where and what to do."""

import os
from collections.abc import Sequence
from pathlib import Path


class ForebearError(Exception):
    """A mistake in the input. Scripts print its sentence, without a traceback, and exit with 1."""


class OutOfReachError(ForebearError):
    """The system does not let a file be opened now, which says nothing of its content: it may well be whole."""


def shortened(items: Sequence[object], most: int = 8) -> str:
    """The first few of many items, for a sentence: 3, 7, 9 and 12 more."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def removal(*paths: str | Path) -> str:
    """The command that removes files and folders.

    What lies in Snakemake's cache has a link in its place, and would come back from there; so
    the command names what links lead to as well.
    """
    command = "rm -r" if any(os.path.isdir(path) for path in paths) else "rm"
    linked = [os.path.realpath(path) for path in paths if os.path.islink(path)]
    return " ".join([command, *map(str, paths), *linked])
