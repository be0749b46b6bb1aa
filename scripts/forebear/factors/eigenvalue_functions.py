"""Functions f(Λ) of the curvature: damped inverses, and SOURCE's of training time."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Eigenvalue functions: the f(Λ) with which f(H) is applied to a vector.


def damped_inverse(eigenvalues: Tensor, damping: float) -> Tensor:
    """1 / (Λ + λ): the inverse of H + λ."""
    return 1 / (eigenvalues + damping)


def unrolled_inverse(eigenvalues: Tensor, time: float) -> Tensor:
    """(1 − exp(−tΛ)) / Λ: H's inverse as far as gradient descent for t = η̄K gets there.

    K steps of size η̄ move the parameters by −(1 − (1 − η̄Λ)^K) / Λ times a constant gradient
    that is added to the loss, which is this for small steps. It is t where Λ is 0 and needs
    no damping: directions flatter than 1/t have not been followed to their end.
    """
    exponents = time * eigenvalues
    return time * torch.where(exponents == 0, 1, -torch.expm1(-exponents) / exponents)


def remaining(eigenvalues: Tensor, time: float) -> Tensor:
    """exp(−tΛ): what is left of a difference of the initial parameters after gradient descent for t = η̄K."""
    return torch.exp(-time * eigenvalues)


@dataclass(frozen=True)
class Damping:
    """What is added to a curvature before it is inverted; one of the two is None."""

    relative: float | None = None  # ρ: times the mean of a block's Λ
    absolute: float | None = None  # λ itself

    def of(self, eigenvalues: Tensor) -> float:
        """λ of the block with these eigenvalues."""
        return self.absolute if self.relative is None else self.relative * eigenvalues.mean().item()
