"""The bank of retrainings: subsets, the plan, and one small file for each retraining.

A retraining is named by a digest of everything that it depends on, and its measurements
are one file under that name. So a killed job loses at most the retraining in hand, more
subsets only add files, and nothing is retrained twice.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from forebear.store import Attributes, create, open_checked

_SUBSET_STREAM = 3


@dataclass(frozen=True)
class Retraining:
    """One row of the bank: which subset, with which seed."""

    subset: int
    seed: int


def draw_subsets(documents: Mapping[str, int], fraction: float, subsets: int, seed: int) -> dict[str, np.ndarray]:
    """Of every stage's N documents, [subsets, N] bool masks with round(fraction · N) entries each.

    Row j depends on the seed and j alone, so asking for more keeps those that are there.
    """
    masks = {stage: np.zeros((subsets, number), dtype=bool) for stage, number in documents.items()}
    for j in range(subsets):
        generator = np.random.default_rng([seed, _SUBSET_STREAM, j])
        for stage, number in documents.items():
            masks[stage][j, generator.permutation(number)[: round(fraction * number)]] = True
    return masks


def plan_retrainings(subsets: int, repeats: int, seed: int) -> list[Retraining]:
    """Every subset with the study's seed, and the first `repeats` again with the next one."""
    return [Retraining(j, seed) for j in range(subsets)] + [Retraining(j, seed + 1) for j in range(repeats)]


def retraining_key(recipe: Mapping, mask: np.ndarray, seed: int) -> str:
    """Names a retraining by what it depends on.

    Args:
        recipe: model, schedules, data digests and engine digest, JSON-compatible.
        mask: [N] bool over the documents of all attributed stages.
    """
    content = json.dumps([recipe, seed], sort_keys=True).encode() + np.packbits(mask).tobytes()
    return hashlib.sha256(content).hexdigest()[:32]


def write_measurement(path: str | Path, retraining: Retraining, measurements: np.ndarray) -> None:
    with create(path, "retraining", asdict(retraining)) as file:
        file["measurements"] = measurements


def read_measurement(path: str | Path) -> np.ndarray:
    """[Q] measurements of one retraining."""
    with open_checked(path, "retraining") as file:
        return file["measurements"][()]


def write_subsets(path: str | Path, subsets: Mapping[str, np.ndarray], attributes: Attributes) -> None:
    """Masks [S, N] of every attributed stage."""
    with create(path, "subsets", attributes) as file:
        for stage, masks in subsets.items():
            file[f"{stage}/subsets"] = masks


def read_subsets(path: str | Path, expected: Attributes | None = None) -> dict[str, np.ndarray]:
    with open_checked(path, "subsets", expected) as file:
        return {stage: group["subsets"][()] for stage, group in file.items()}


def write_bank(
    path: str | Path, subset: np.ndarray, seed: np.ndarray, measurements: np.ndarray, attributes: Attributes
) -> None:
    """Retrainings: which subset [R] with which seed [R] gave which query losses [R, Q]."""
    with create(path, "bank", attributes) as file:
        file["subset"], file["seed"], file["measurements"] = subset, seed, measurements


def read_bank(path: str | Path, expected: Attributes | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    with open_checked(path, "bank", expected) as file:
        return file["subset"][()], file["seed"][()], file["measurements"][()]
