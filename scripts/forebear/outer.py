"""Gradients kept as they come: a sequence's is a sum, over its tokens, of outer products.

For a few tokens this takes far less memory than the matrices, and a change of basis is one of
the tokens' vectors. Documents' gradients never wait, so only queries' are kept like this.
"""

from dataclasses import dataclass

import h5py
import torch
from torch import Tensor


@dataclass(frozen=True)
class OuterProducts:
    """Matrices Σ_t g_t a_tᵀ, [Q, O, I], that were not formed; in memory, or in an open file."""

    left: Tensor | h5py.Dataset  # g [Q, T, O], zero at padding
    right: Tensor | h5py.Dataset  # a [Q, T, I]

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


Matrices = Tensor | OuterProducts


def in_memory(matrices: Matrices | h5py.Dataset, queries: slice) -> Matrices:
    """Those of some queries, which may lie in an open file."""
    chosen = matrices[queries]
    return chosen if isinstance(chosen, OuterProducts) else torch.as_tensor(chosen)


def formed(matrices: Matrices) -> Tensor:
    """The matrices [Q, O, I] of those in memory."""
    return matrices.formed() if isinstance(matrices, OuterProducts) else matrices
