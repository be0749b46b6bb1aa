"""The files of a curvature: covariances, eigenbasis and eigenvalues, one writer and one reader each.

Layout: one group per block (`/{block}/gradient`), what blocks of one linear map share in
that map's group (`/{module}/activation`). Every file carries the digests of the model and
the data that it was made from, and readers refuse any other.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from forebear.kronecker import Covariances, Eigenbasis
from forebear.store import (
    WHOLE,
    Attributes,
    Shard,
    StoredTensors,
    create,
    open_checked,
    open_to_stay,
    read_tensors,
    shard_kind,
    write_tensors,
)


def write_covariances(path: str | Path, covariances: Covariances, attributes: Attributes, shard: Shard = WHOLE) -> None:
    with create(path, shard_kind("covariances", shard), attributes) as file:
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


def stored_eigenbasis(path: str | Path, expected: Attributes | None = None) -> Eigenbasis:
    """The same, which reads each matrix when it is asked for."""
    file = open_to_stay(path, "eigenbasis", expected)
    return Eigenbasis(*(StoredTensors(file, field) for field in _EIGENBASIS))


def write_eigenvalues(
    path: str | Path, eigenvalues: Mapping[str, Tensor], attributes: Attributes, shard: Shard = WHOLE
) -> None:
    with create(path, shard_kind("eigenvalues", shard), attributes) as file:
        write_tensors(file, eigenvalues, "eigenvalues")


def read_eigenvalues(path: str | Path, expected: Attributes | None = None) -> dict[str, Tensor]:
    with open_checked(path, "eigenvalues", expected) as file:
        return read_tensors(file, "eigenvalues")


def stored_eigenvalues(path: str | Path, expected: Attributes | None = None) -> StoredTensors:
    """The same, each read when it is asked for."""
    return StoredTensors(open_to_stay(path, "eigenvalues", expected), "eigenvalues")
