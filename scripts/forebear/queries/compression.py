"""Preconditioned queries of low rank, in the metric in which documents see them.

A query's matrix V [O, I] of a block is only ever multiplied with documents' gradients. With
their Kronecker-factored second moment S ⊗ A (see `kronecker`), the mean square of what is lost of
a product by taking V_r for V is in proportion to ‖S^½ (V − V_r) A^½‖², so V_r is the best of rank r
by that norm: S^½ V A^½ has its singular values cut (Eckart and Young 1936), and S^½ and A^½ are
taken out again. By the plain norm a preconditioned query is mostly what documents never
look at, for an inverse is large where the curvature is small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forebear.factors.kronecker import Eigenbasis
from forebear.gradients.blocks import Block
from forebear.gradients.outer_products import OuterProducts

FLOOR = 1e-4  # of the mean eigenvalue, added to all, so that S^½ and A^½ can be taken out again
EXACT_SIDE = 256  # matrices whose shorter side is at most this, or four times the rank, are decomposed exactly
OVERSAMPLING = 8  # directions of a random sketch beyond the rank
CHUNK_ELEMENTS = 1 << 22  # of matrices decomposed at once: 16 MiB in float32


@dataclass(frozen=True)
class Metric:
    """S^½ and A^½ of a block in their eigenvectors Q: Q·√values, which leads into the metric, and Q/√values, which leads out."""

    left: tuple[Tensor, Tensor]  # of S, [O, O] each
    right: tuple[Tensor, Tensor]  # of A, [I, I] each

    @classmethod
    def of(cls, block: Block, basis: Eigenbasis) -> "Metric":
        """Where the documents' gradients of a block have the moments that this eigenbasis is of."""

        def scaled(vectors: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            floor = FLOOR * values.mean()
            # A block that nothing goes through has the plain norm.
            roots = (values + (floor if floor > 0 else 1)).sqrt()
            return vectors * roots, vectors / roots

        left = basis.gradient[block.name], basis.gradient_values[block.name]
        return cls(scaled(*left), scaled(basis.activation[block.module], basis.activation_values[block.module]))

    def to(self, device: torch.device | str) -> "Metric":
        return Metric(*(tuple(part.to(device) for part in side) for side in (self.left, self.right)))


@dataclass(frozen=True)
class Compressed:
    """Queries of low rank and, for each [Q], what was lost and what there was, as squares in the metric."""

    products: OuterProducts  # left [Q, r, O], right [Q, r, I]
    lost: Tensor
    whole: Tensor


def compress(matrices: Tensor, metric: Metric, rank: int, seed: int = 0) -> Compressed:
    """The best matrices of a rank in a metric, the singular values shared equally between left and right.

    Large ones are decomposed from a random sketch with two power iterations (Halko et al. 2011,
    arXiv 0909.4061), which may lose a little more than the best; the same seed gives the same.

    Args:
        matrices: [Q, O, I]; a few are decomposed at a time.
        rank: at most that of the matrices counts.
    """
    _, rows, columns = matrices.shape
    rank = min(rank, rows, columns)
    chunk = max(1, CHUNK_ELEMENTS // (rows * columns))
    parts = [_compress(part, metric, rank, seed) for part in matrices.split(chunk)]
    left, right, lost, whole = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return Compressed(OuterProducts(left, right), lost, whole)


def _compress(matrices: Tensor, metric: Metric, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (left_into, left_out), (right_into, right_out) = metric.left, metric.right
    seen = left_into.T @ matrices @ right_into
    side = min(seen.shape[1:])
    if side <= EXACT_SIDE or side <= 4 * rank:
        u, values, vt = torch.linalg.svd(seen, full_matrices=False)
        u, values, v = u[..., :rank], values[:, :rank], vt[:, :rank].mT
    else:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            u, values, v = (part[..., :rank] for part in torch.svd_lowrank(seen, rank + OVERSAMPLING, niter=2))
    u, v = u * values[:, None].sqrt(), v * values[:, None].sqrt()
    lost = (seen - u @ v.mT).square().sum((1, 2))
    return (left_out @ u).mT.contiguous(), (right_out @ v).mT.contiguous(), lost, seen.square().sum((1, 2))


def relative_residual(lost: Tensor, whole: Tensor) -> Tensor:
    """√(lost / whole) elementwise; 0 where there was nothing."""
    return torch.where(whole > 0, lost / whole, 0).sqrt()
