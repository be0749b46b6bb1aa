"""Versions of the libraries that make numbers and files, as they are installed.

Importing this room is cheap, since every job does before its log is there.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

# Libraries that make numbers.
NUMERIC = ("torch", "transformers", "tokenizers", "numpy", "scipy")


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """Library → its version, or that it is not installed."""
    found = {}
    for name in libraries:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def minor_versions() -> dict[str, str]:
    """Major and minor versions of NUMERIC, as bug fixes should cost no retraining."""
    return {name: ".".join(full.split(".")[:2]) for name, full in versions_of(NUMERIC).items()}
