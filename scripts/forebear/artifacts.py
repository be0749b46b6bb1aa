"""The artifacts between rules, one writer and one reader each.

Layout: one group per block (`/{block}/gradient`), what blocks of one linear map share in
that map's group (`/{module}/activation`). Every file carries the digests of the model and
the data that it was made from, and readers refuse any other.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forebear.blocks import Block
from forebear.kronecker import Covariances, Eigenbasis
from forebear.manifests import read_manifest
from forebear.store import (
    Attributes,
    check_scores,
    create,
    open_checked,
    read_attributes,
    read_tensors,
    write_tensors,
)

SCORE_UNITS = {
    "units": "loss: nats summed over a sequence's target tokens; curvature: of the mean loss over sequences",
    "sign": "score > 0: more weight on the document lowers the query's loss",
}


def write_covariances(path: str | Path, covariances: Covariances, attributes: Attributes) -> None:
    with create(path, "covariances", attributes) as file:
        write_tensors(file, covariances.activation, "activation")
        write_tensors(file, covariances.gradient, "gradient")


def read_covariances(path: str | Path, expected: Attributes | None = None) -> Covariances:
    with open_checked(path, "covariances", expected) as file:
        return Covariances(read_tensors(file, "activation"), read_tensors(file, "gradient"))


_EIGENBASIS = ("activation", "gradient", "activation_values", "gradient_values")


def write_eigenbasis(path: str | Path, basis: Eigenbasis, attributes: Attributes) -> None:
    with create(path, "eigenbasis", attributes) as file:
        for field in _EIGENBASIS:
            write_tensors(file, getattr(basis, field), field)


def read_eigenbasis(path: str | Path, expected: Attributes | None = None) -> Eigenbasis:
    with open_checked(path, "eigenbasis", expected) as file:
        return Eigenbasis(*(read_tensors(file, field) for field in _EIGENBASIS))


def write_eigenvalues(path: str | Path, eigenvalues: Mapping[str, Tensor], attributes: Attributes) -> None:
    with create(path, "eigenvalues", attributes) as file:
        write_tensors(file, eigenvalues, "eigenvalues")


def read_eigenvalues(path: str | Path, expected: Attributes | None = None) -> dict[str, Tensor]:
    with open_checked(path, "eigenvalues", expected) as file:
        return read_tensors(file, "eigenvalues")


@dataclass(frozen=True)
class QueryColumns:
    """Query gradients, raw or preconditioned, with what is needed to use them without a model."""

    columns: dict[str, Tensor]  # block → [Q, O, I]
    losses: Tensor  # [Q]
    places: np.ndarray  # [Q] which of the study's queries these are
    blocks: list[Block]
    attributes: dict


def write_query_columns(
    path: str | Path,
    columns: Mapping[str, Tensor],
    losses: Tensor,
    blocks: Sequence[Block],
    attributes: Attributes,
    places: Tensor | None = None,
) -> None:
    """Columns [Q, O, I] and losses [Q] of all of the study's queries, or of those at `places` [Q]."""
    described = json.dumps([{**asdict(block), "rows": [block.rows.start, block.rows.stop]} for block in blocks])
    with create(path, "query columns", {**attributes, **SCORE_UNITS, "blocks": described}) as file:
        write_tensors(file, columns, "columns")
        file["losses"] = losses.numpy()
        file["places"] = np.arange(len(losses)) if places is None else places.numpy()


def read_query_columns(path: str | Path, expected: Attributes | None = None) -> QueryColumns:
    with open_checked(path, "query columns", expected) as file:
        described = json.loads(file.attrs["blocks"])
        blocks = [Block(**{**b, "rows": slice(*b["rows"]), "shape": tuple(b["shape"])}) for b in described]
        losses, places = torch.from_numpy(file["losses"][()]), file["places"][()]
        return QueryColumns(read_tensors(file, "columns"), losses, places, blocks, dict(file.attrs))


def write_scores(path: str | Path, scores: np.ndarray, attributes: Attributes) -> None:
    """Scores [N, Q], whole; a long computation writes them through store.ResumableMatrix.

    A column that is NaN as a whole is a query that was left out.
    """
    left_out = np.isnan(scores).all(0)
    check_scores(path, np.arange(len(scores)), scores if left_out.all() else scores[:, ~left_out])
    with create(path, "scores", {**attributes, **SCORE_UNITS}) as file:
        file["matrix"] = scores


def read_scores(path: str | Path, expected: Attributes | None = None) -> tuple[np.ndarray, dict]:
    """Scores [N, Q] and the file's attributes."""
    with open_checked(path, "scores", expected) as file:
        return file["matrix"][()], dict(file.attrs)


def read_cost(path: str | Path) -> dict:
    """`seconds` and `peak_bytes` of what made an artifact, or of training a checkpoint, given its manifest."""
    return read_manifest(path)["cost"] if Path(path).suffix == ".json" else read_attributes(path)


def write_self_influence(path: str | Path, values: np.ndarray, attributes: Attributes) -> None:
    """Self-influence of every document, [N]."""
    with create(path, "self-influence", attributes) as file:
        file["values"] = values


def read_self_influence(path: str | Path, expected: Attributes | None = None) -> np.ndarray:
    with open_checked(path, "self-influence", expected) as file:
        return file["values"][()]


def write_sweep(
    path: str | Path, predictions: np.ndarray, grid: Mapping[str, Sequence[float]], attributes: Attributes
) -> None:
    """Predictions [A, L, W, S, Q] with the grid's `alpha` [A], `later` [L] and `own` [W]."""
    with create(path, "sweep", attributes) as file:
        file["predictions"] = predictions
        for axis in _GRID:
            file[axis] = np.asarray(grid[axis], dtype=float)


def read_sweep(path: str | Path, expected: Attributes | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Predictions [A, L, W, S, Q] and the values of the first three axes."""
    with open_checked(path, "sweep", expected) as file:
        return file["predictions"][()], {axis: file[axis][()] for axis in _GRID}


_GRID = ("alpha", "later", "own")
