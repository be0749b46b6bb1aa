"""The bank of retrainings: subsets, the plan, and a folder for each retraining.

A retraining's folder is named by a digest of everything that it depends on, and holds the
models of its stages, and what was measured at the last one, query by query. So a killed job loses
at most the retraining in hand, and more subsets or queries only add what they add.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from forebear.artifacts.manifests import NAME, read_manifest
from forebear.errors import ForebearError
from forebear.runtime.versions import minor_versions

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
    """Names a retraining by what it depends on, and by the versions of the libraries that train.

    Args:
        recipe: model, schedules, digests of the training data and of the engine, JSON-compatible.
        mask: [N] bool over the documents of all attributed stages.
    """
    content = json.dumps([recipe, seed], sort_keys=True).encode() + np.packbits(mask).tobytes()
    made_by = [f"{name}-{minor_versions()[name]}" for name in ("torch", "transformers")]
    return "-".join([hashlib.sha256(content).hexdigest()[:32], *made_by])


def key_of_any_version(bank: Path, key: str, last: str) -> str:
    """The key itself if its retraining is finished, else one that differs in versions alone and is, else the key.

    Args:
        bank: the folder of all retrainings.
        last: the last stage, whose model a finished one has.
    """
    digest = key.partition("-")[0]
    finished = sorted(path.parents[1].name for path in bank.glob(f"{digest}*/{last}/{NAME}"))
    return key if key in finished or not finished else finished[-1]


def checked_manifest(bank: str | Path, key: str, stage: str) -> Path:
    """The manifest of a retrained stage's model, after checking that the model is there and whole.

    Raises:
        ForebearError: with what to do about it.
    """
    path = Path(bank) / key / stage / NAME
    try:
        read_manifest(path)
    except ForebearError as error:
        raise ForebearError(
            f"{error} Add `--forcerun retrain`: what is missing is retrained, and nothing else."
        ) from error
    return path


@dataclass(frozen=True)
class Bank:
    """The ground truth: R retrainings, each on one of the subsets with one seed."""

    subsets: np.ndarray  # [S, N] bool, over the documents of all attributed stages
    subset: np.ndarray  # [R] row of `subsets`
    seed: np.ndarray  # [R]
    measurements: np.ndarray  # [R, Q] query losses in nats

    def with_seed(self, seed: int) -> "Bank":
        """The retrainings of one seed."""
        chosen = self.seed == seed
        return Bank(self.subsets, self.subset[chosen], self.seed[chosen], self.measurements[chosen])

    def of_queries(self, chosen: np.ndarray) -> "Bank":
        """What was measured on some of the queries, [Q] bool."""
        return replace(self, measurements=self.measurements[:, chosen])
