"""One inverse of the chain, opened from what the config says of it and the files that it names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from forebear.artifacts.digests import file_digest
from forebear.artifacts.hdf5 import read_attributes
from forebear.artifacts.manifests import read_manifest
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.files import read_eigenbasis, read_eigenvalues, stored_eigenbasis, stored_eigenvalues
from forebear.factors.kronecker import kfac_eigenvalues
from forebear.gradients.blocks import Block
from forebear.queries.chain import DampedInverse, SourceSegment, default_pull, training_time


def open_inverse(
    link: Mapping,
    manifest: str | Path,
    records: str | Path,
    eigenbasis: str | Path,
    eigenvalues: str | Path | None,
    blocks: Sequence[Block],
    unrolled: Literal["sgd", "adam"] | None = None,
    stored: bool = False,
    device: torch.device | str = "cpu",
) -> DampedInverse | SourceSegment:
    """A stage's damped inverse, or its segment of SOURCE, which needs neither damping nor α.

    An inverse's scale is α for the stages after the documents', else 1.

    Args:
        link: `point`, `damping`, `alpha` ("auto", a number, or None for a stage without a
            pull), `scaled`, and `seed`, that of the labels that the factors were sampled with.
        manifest, records: the model and the data that the factors must have been made from.
        eigenvalues: EK-FAC's Λ, or None for K-FAC's.
        unrolled: SOURCE's segment, with the time of this optimizer.
        stored: leave the factors in their files and read a block's whenever it is asked for.
    """
    made_by = read_manifest(manifest)
    digests = {"model_digest": made_by["model_digest"], "data_digest": file_digest(records), "seed": link["seed"]}
    basis = (stored_eigenbasis if stored else read_eigenbasis)(eigenbasis, digests)
    if eigenvalues is not None:
        values = (stored_eigenvalues if stored else read_eigenvalues)(eigenvalues, digests)
    else:
        made_from = read_attributes(eigenbasis, "eigenbasis")
        values = kfac_eigenvalues(basis, blocks, made_from["positions"] / made_from["sequences"])
    if unrolled:
        time = training_time(made_by["training"], unrolled == "adam")
        print(f"{link['point']}: time {time}")
        return SourceSegment(basis, values, time, link["scaled"], link["point"], device)
    pull = pull_of(link, made_by)
    print(f"{link['point']}: damping {link['damping']}, α {pull}")
    scale = pull if link["scaled"] else 1.0
    return DampedInverse(basis, values, Damping(**link["damping"]), pull, scale, link["point"], device)


def pull_of(link: Mapping, manifest: Mapping) -> float:
    """α of a link's stage, which `auto` reads off its manifest's training record; 0 for a stage without a pull."""
    return default_pull(manifest["training"]) if link["alpha"] == "auto" else link["alpha"] or 0.0
