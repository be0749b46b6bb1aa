"""The files of a curvature: covariances, eigenbasis and eigenvalues, one writer and one reader each.

Layout: one group per block (`/{block}/gradient`), what blocks of one linear map share in
that map's group (`/{module}/activation`; `/{module}/shares` [1] where it does not see each position once, as an
expert does not). Every file carries the digests of the model and
the data that it was made from, and readers refuse any other.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import torch
from torch import Tensor

from forebear.artifacts.hdf5 import Attributes, create, open_checked, open_to_stay
from forebear.artifacts.tensors import StoredTensors, read_tensors, write_tensors
from forebear.factors.kronecker import Covariances, Eigenbasis


class FactorWriter:
    """Takes the factors of some blocks after those of others, and at last what it took."""

    def __init__(self, file: h5py.File):
        self._file = file

    def write(self, factors: Covariances | Eigenbasis | Mapping[str, Tensor]) -> None:
        """Covariances, eigenvectors, or eigenvalues Λ by block."""
        fields = {"eigenvalues": factors} if isinstance(factors, Mapping) else vars(factors)
        for dataset, tensors in fields.items():
            write_tensors(self._file, tensors, dataset)

    def note(self, attributes: Attributes) -> None:
        self._file.attrs.update(attributes)


@contextmanager
def create_factors(path: str | Path, kind: str, attributes: Attributes) -> Iterator[FactorWriter]:
    """A file of "covariances", "eigenbasis" or "eigenvalues", or a shard's (`shard_kind`), which appears when the block ends."""
    with create(path, kind, attributes) as file:
        yield FactorWriter(file)


def stored_covariances(path: str | Path, expected: Attributes | None = None) -> Covariances:
    """Each matrix is read when it is asked for."""
    file = open_to_stay(path, "covariances", expected)
    return Covariances(StoredTensors(file, "activation"), StoredTensors(file, "gradient"), _shares(file))


def _shares(file: h5py.File) -> dict[str, Tensor]:
    """Of the maps that do not see each position once; a dense model has none."""
    found: dict[str, Tensor] = {}

    def visit(name: str, item: object) -> None:
        module, _, leaf = name.rpartition("/")
        if leaf == "shares" and isinstance(item, h5py.Dataset):
            found[module] = torch.from_numpy(item[()])

    file.visititems(visit)
    return found


_EIGENBASIS = ("activation", "gradient", "activation_values", "gradient_values")


def read_eigenbasis(path: str | Path, expected: Attributes | None = None) -> Eigenbasis:
    with open_checked(path, "eigenbasis", expected) as file:
        return Eigenbasis(*(read_tensors(file, field) for field in _EIGENBASIS), _shares(file))


def stored_eigenbasis(path: str | Path, expected: Attributes | None = None) -> Eigenbasis:
    """The same, which reads each matrix when it is asked for."""
    file = open_to_stay(path, "eigenbasis", expected)
    return Eigenbasis(*(StoredTensors(file, field) for field in _EIGENBASIS), _shares(file))


def read_eigenvalues(path: str | Path, expected: Attributes | None = None) -> dict[str, Tensor]:
    with open_checked(path, "eigenvalues", expected) as file:
        return read_tensors(file, "eigenvalues")


def stored_eigenvalues(path: str | Path, expected: Attributes | None = None) -> StoredTensors:
    """The same, each read when it is asked for."""
    return StoredTensors(open_to_stay(path, "eigenvalues", expected), "eigenvalues")
