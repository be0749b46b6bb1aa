"""The files of query gradients, raw and preconditioned: `/{block}/columns`, and the queries' losses."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forebear.blocks import Block
from forebear.store import (
    SCORE_UNITS,
    Attributes,
    create,
    open_checked,
    read_attributes,
    read_tensors,
    write_tensors,
)


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


def solves_of(path: str | Path) -> list[dict]:
    """Of queries that a solver made: each stage's `sequences`, and every query's `iterations` and `residuals`."""
    return json.loads(read_attributes(path, "query columns")["solves"])
