"""The bank of retrainings: subsets, the plan, and a folder for each retraining.

A retraining's folder is named by a digest of everything that it depends on, and holds the
models of its stages, and what was measured at the last one, query by query. So a killed job loses
at most the retraining in hand, and more subsets or queries only add what they add.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebear.errors import ForebearError
from forebear.manifests import NAME, read_manifest
from forebear.store import Attributes, create, open_checked
from forebear.versions import minor_versions

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


def write_shard(
    path: str | Path, retrainings: Sequence[Retraining], keys: Sequence[str], attributes: Attributes
) -> None:
    """Say which retrainings a job finished, and the keys that name their folders."""
    with create(path, "retrainings", attributes) as file:
        file["subset"], file["seed"] = [r.subset for r in retrainings], [r.seed for r in retrainings]
        file["key"] = np.array(keys, dtype="S")


def read_shards(paths: Sequence[str | Path], expected: Attributes | None = None) -> dict[Retraining, str]:
    """The key of every retraining of several jobs, ordered by seed and subset."""
    keys = {}
    for path in paths:
        with open_checked(path, "retrainings", expected) as file:
            rows = zip(
                file["subset"][()].tolist(),
                file["seed"][()].tolist(),
                file["key"][()].astype(str).tolist(),
                strict=True,
            )
            keys |= {Retraining(subset, seed): key for subset, seed, key in rows}
    return dict(sorted(keys.items(), key=lambda item: (item[0].seed, item[0].subset)))


def ensemble_keys(paths: Sequence[str | Path], expected: Attributes, seed: int, members: int) -> list[str]:
    """Keys of the first retrainings with another seed than `seed`, the one that the LDS is measured on."""
    others = [key for retraining, key in read_shards(paths, expected).items() if retraining.seed != seed]
    return others[:members]


def checked_folder(path: str | Path) -> Path:
    """The folder of a retrained stage's model, after checking that it is there and whole.

    Raises:
        ForebearError: with what to do about it.
    """
    path = Path(path)
    try:
        read_manifest(path / "manifest.json")
    except ForebearError as error:
        raise ForebearError(
            f"{error} Add `--forcerun retrain`: what is missing is retrained, and nothing else."
        ) from error
    return path


def write_measurements(path: str | Path, measurements: Mapping[str, float]) -> None:
    """Measurements of one retraining, by the queries' `records.record_key`."""
    with create(path, "measurements", {}) as file:
        file["keys"] = np.array(list(measurements), "S")
        file["measurements"] = np.array(list(measurements.values()), np.float32)


def read_measurements(path: str | Path) -> dict[str, float]:
    """What was measured so far at a retraining."""
    if not Path(path).exists():
        return {}
    with open_checked(path, "measurements") as file:
        return dict(zip(file["keys"].asstr()[()], file["measurements"][()].tolist(), strict=True))


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
