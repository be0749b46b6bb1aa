"""How much of each stage's model is tracked, as the artifacts made from it say, and a warning where that is little."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from forebear.artifacts.hdf5 import read_attributes

ENOUGH = 0.5  # of the parameters in the layers


def tracked_shares(files: Iterable[str | Path], last: str) -> dict[str, float]:
    """Stage → the part of its layers' parameters that is tracked, from factors and gradients of queries.

    Args:
        files: artifacts; those that do not say it are passed over.
        last: the stage at whose model queries are looked at.
    """
    shares: dict[str, float] = {}
    for file in files:
        attributes = read_attributes(file)
        if "tracked_share" in attributes:
            shares[str(attributes.get("point", last)).rpartition("@")[2]] = float(attributes["tracked_share"])
    return shares


def tracked_warnings(shares: Mapping[str, float]) -> list[str]:
    """A sentence for each stage of whose model so little is tracked that its scores say little."""
    return [
        f"Only {share:.1%} of the parameters in the layers of {stage!r} are tracked, so scores leave out most of what "
        "a document changes there; docs/models.md says what is tracked."
        for stage, share in shares.items()
        if share < ENOUGH
    ]
