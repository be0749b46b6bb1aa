"""The one exception for what a user can mend: its text says what, where and what to do."""

from collections.abc import Sequence


class ForebearError(Exception):
    """A mistake in the input. Scripts print its sentence, without a traceback, and exit with 1."""


def shortened(items: Sequence[object], most: int = 8) -> str:
    """The first few of many items, for a sentence: 3, 7, 9 and 12 more."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
