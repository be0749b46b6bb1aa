"""The files of the ground truth: subsets, finished retrainings, measurements and the bank."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from forebear.artifacts.hdf5 import Attributes, create, open_checked
from forebear.ground_truth.bank import Retraining


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
