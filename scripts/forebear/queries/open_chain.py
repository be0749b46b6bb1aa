"""One inverse of the chain, opened from what the config says of it and the files that it names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from forebear.artifacts.hdf5 import read_attributes
from forebear.artifacts.manifests import point_digests, read_manifest
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
    stored: bool = False,
    device: torch.device | str = "cpu",
) -> DampedInverse:
    """A stage's damped inverse; its scale is α for the stages after the documents', else 1.

    Args:
        link: `point`, `damping`, `alpha` ("auto", a number, or None for a stage without a
            pull), `scaled`, and `seed`, that of the labels that the factors were sampled with.
        manifest, records: the model and the data that the factors must have been made from.
        eigenvalues: EK-FAC's Λ, or None for K-FAC's.
        stored: leave the factors in their files and read a block's whenever it is asked for.
    """
    digests = {**point_digests(manifest, records), "seed": link["seed"]}
    basis = (stored_eigenbasis if stored else read_eigenbasis)(eigenbasis, digests)
    if eigenvalues is not None:
        values = (stored_eigenvalues if stored else read_eigenvalues)(eigenvalues, digests)
    else:
        made_from = read_attributes(eigenbasis, "eigenbasis")
        values = kfac_eigenvalues(basis, blocks, made_from["positions"] / made_from["sequences"])
    pull = pull_of(link, manifest)
    print(f"{link['point']}: damping {link['damping']}, α {pull}")
    scale = pull if link["scaled"] else 1.0
    return DampedInverse(basis, values, Damping(**link["damping"]), pull, scale, link["point"], device)


def pull_of(link: Mapping, manifest: str | Path) -> float:
    """α of a link's stage, which `auto` reads off the training record; 0 for a stage without a pull."""
    if link["alpha"] == "auto":
        return default_pull(read_manifest(manifest)["training"])
    return link["alpha"] or 0.0


def open_segment(
    link: Mapping,
    manifest: str | Path,
    records: str | Path,
    eigenbasis: str | Path,
    eigenvalues: str | Path,
    adam: bool,
    device: torch.device | str = "cpu",
) -> SourceSegment:
    """The same stage as SOURCE sees it, which needs neither damping nor α; the factors stay in their files.

    Other arguments are those of `open_inverse`.

    Args:
        adam: whether the training record's time is AdamW's.
    """
    digests = {**point_digests(manifest, records), "seed": link["seed"]}
    time = training_time(read_manifest(manifest)["training"], adam)
    print(f"{link['point']}: time {time}")
    basis, values = stored_eigenbasis(eigenbasis, digests), stored_eigenvalues(eigenvalues, digests)
    return SourceSegment(basis, values, time, link["scaled"], link["point"], device)
