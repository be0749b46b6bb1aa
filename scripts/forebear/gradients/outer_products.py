"""Matrices kept as sums of outer products: gradients as they come, over tokens, and compressed queries.

For a few terms this takes far less memory than the matrices, a change of basis is one of the
vectors, and the inner product of two matrices is a sum over pairs of terms.
"""

from dataclasses import dataclass

import h5py
import numpy as np
import torch
from torch import Tensor

PAIRS = 1 << 21  # of terms that are multiplied at once: 8 MiB in float32


def as_slice(indices: np.ndarray) -> slice | np.ndarray:
    """Increasing indices, as a slice where nothing lies between them: HDF5 reads and writes that far faster."""
    if len(indices) and indices[-1] - indices[0] == len(indices) - 1:
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


class Rows:
    """Some rows of a dataset in an open file, at increasing indices, read whenever they are asked for."""

    def __init__(self, dataset: h5py.Dataset, indices: np.ndarray):
        self._dataset, self._indices = dataset, indices
        self.shape = (len(indices), *dataset.shape[1:])

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, rows: slice | Tensor) -> np.ndarray:
        return self._dataset[as_slice(self._indices[rows])]


@dataclass(frozen=True)
class OuterProducts:
    """Matrices Σ_t g_t a_tᵀ, [Q, O, I], that were not formed; in memory, or in an open file."""

    left: Tensor | h5py.Dataset | Rows  # g [Q, T, O], zero at padding
    right: Tensor | h5py.Dataset | Rows  # a [Q, T, I]

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, queries: slice | Tensor) -> "OuterProducts":
        """Those of some queries, in memory."""
        return OuterProducts(torch.as_tensor(self.left[queries]), torch.as_tensor(self.right[queries]))

    @property
    def device(self) -> torch.device:
        return self.left.device

    def to(self, device: torch.device | str) -> "OuterProducts":
        return OuterProducts(self.left.to(device), self.right.to(device))

    def formed(self, out: Tensor | None = None) -> Tensor:
        """The matrices [Q, O, I] of those in memory."""
        return torch.bmm(self.left.transpose(1, 2), self.right, out=out)

    def squared_norms(self) -> Tensor:
        """Squared Frobenius norms [Q] of those in memory: Σ_tu (g_t·g_u)(a_t·a_u)."""
        left, right = (torch.bmm(part, part.transpose(1, 2)) for part in (self.left, self.right))
        return left.mul_(right).sum((1, 2))

    def products(self, others: "OuterProducts") -> Tensor:
        """Inner products [Q, R] with R others, all in memory: Σ_tu (g_t·h_u)(a_t·b_u), h and b being the others'.

        A few of the others at a time, so that what lies between stays small.
        """
        terms, rank = self.left.shape[:2], others.left.shape[1]
        left, right = self.left.flatten(0, 1), self.right.flatten(0, 1)
        result = self.left.new_empty(len(self), len(others))
        chunk = max(1, PAIRS // max(1, len(left) * rank))
        for first in range(0, len(others), chunk):
            part = others[first : first + chunk]
            pairs = (left @ part.left.flatten(0, 1).T).mul_(right @ part.right.flatten(0, 1).T)
            result[:, first : first + chunk] = pairs.view(*terms, len(part), rank).sum((1, 3))
        return result


Matrices = Tensor | OuterProducts


def in_memory(matrices: Matrices | h5py.Dataset | Rows, queries: slice) -> Matrices:
    """Those of some queries, which may lie in an open file."""
    chosen = matrices[queries]
    return chosen if isinstance(chosen, OuterProducts) else torch.as_tensor(chosen)


def formed(matrices: Matrices) -> Tensor:
    """The matrices [Q, O, I] of those in memory."""
    return matrices.formed() if isinstance(matrices, OuterProducts) else matrices
