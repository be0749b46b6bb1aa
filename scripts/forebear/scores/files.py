"""The files of scores and of documents' self-influence, and what it took to make an artifact."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from forebear.artifacts.growing import check_scores
from forebear.artifacts.hdf5 import SCORE_UNITS, Attributes, create, open_checked, read_attributes
from forebear.artifacts.manifests import read_manifest
from forebear.artifacts.shards import WHOLE, Shard, shard_kind
from forebear.scores.trak import Member


def write_scores(path: str | Path, scores: np.ndarray, attributes: Attributes, exact: np.ndarray | None = None) -> None:
    """Scores [N, Q], whole; a long computation writes them through resumable.ResumableMatrix.

    A column that is NaN as a whole is a query that was left out.

    Args:
        exact: [N] bool, the documents whose scores are not of compressed queries; all by default.
    """
    left_out = np.isnan(scores).all(0)
    check_scores(path, np.arange(len(scores)), scores if left_out.all() else scores[:, ~left_out])
    with create(path, "scores", {**attributes, **SCORE_UNITS}) as file:
        file["matrix"] = scores
        if exact is not None:
            file["exact"] = exact


def read_scores(path: str | Path, expected: Attributes | None = None) -> tuple[np.ndarray, dict]:
    """Scores [N, Q] and the file's attributes."""
    with open_checked(path, "scores", expected) as file:
        return file["matrix"][()], dict(file.attrs)


def read_exact(path: str | Path) -> np.ndarray:
    """[N] bool: the documents whose scores are not of compressed queries."""
    with open_checked(path, "scores", content=False) as file:
        return file["exact"][()] if "exact" in file else np.ones(len(file["matrix"]), bool)


def read_cost(path: str | Path) -> dict:
    """`seconds` and `peak_bytes` of what made an artifact, or of training a checkpoint, given its manifest."""
    return read_manifest(path)["cost"] if Path(path).suffix == ".json" else read_attributes(path)


def write_self_influence(
    path: str | Path,
    values: np.ndarray,
    attributes: Attributes,
    shard: Shard = WHOLE,
    documents: np.ndarray | None = None,
) -> None:
    """Self-influence of every document, [N], or of those of a shard, whose places are kept beside it."""
    with create(path, shard_kind("self-influence", shard), attributes) as file:
        file["values"] = values
        if documents is not None:
            file["documents"] = documents


def read_self_influence(path: str | Path, expected: Attributes | None = None) -> np.ndarray:
    with open_checked(path, "self-influence", expected) as file:
        return file["values"][()]


def write_members(path: str | Path, members: Sequence[Member], attributes: Attributes) -> None:
    with create(path, "TRAK features", attributes) as file:
        for k, member in enumerate(members):
            for name, tensor in vars(member).items():
                file[f"{k}/{name}"] = tensor.numpy()


def read_members(path: str | Path, expected: Attributes | None = None) -> list[Member]:
    with open_checked(path, "TRAK features", expected) as file:
        return [Member(**{name: torch.from_numpy(part[name][()]) for name in part}) for part in file.values()]
