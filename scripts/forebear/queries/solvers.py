"""Linear solvers for A x = b with a symmetric positive definite A that can only be multiplied.

Vectors are rows, one system each: [Q, P]. An operator maps [Q, P] to [Q, P], for any Q, so
that one pass over the data serves all systems that still need it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forebear.errors import ForebearError
from forebear.runtime.progress import progress

Operator = Callable[[Tensor], Tensor]  # [Q, P] → [Q, P]


@dataclass(frozen=True)
class Solution:
    """x with A x ≈ b, and how well and how dearly."""

    x: Tensor  # [Q, P]
    residuals: Tensor  # [Q] ‖b − A x‖ / ‖b‖
    iterations: Tensor  # [Q] products with A spent on each system after the first residual


def conjugate_gradient(
    operator: Operator,
    b: Tensor,
    tolerance: float,
    iterations: int,
    precondition: Operator | None = None,
    start: Tensor | None = None,
    description: str = "cg",
) -> Solution:
    """(Preconditioned) conjugate gradient (Hestenes & Stiefel 1952), each row with its own steps.

    Args:
        tolerance: a row is left alone once ‖b − A x‖ ≤ tolerance · ‖b‖.
        iterations: the most iterations.
        precondition: a positive definite approximation of A⁻¹.
        start: x to begin at, [Q, P]; zero by default.

    Returns:
        The residuals are of b − A x itself, computed once more at the end: the recursion's
        loses its digits in low precision.

    Raises:
        ForebearError: A or the preconditioner is not positive definite.
    """
    precondition = precondition or (lambda residual: residual)
    norms = b.norm(dim=1).clamp_min(torch.finfo(b.dtype).tiny)
    x = torch.zeros_like(b) if start is None else start.clone()
    r = b.clone() if start is None else b - operator(x)
    p = precondition(r).clone()
    rz = _dots(r, p)
    spent = torch.zeros(len(b), dtype=torch.int64)
    for _ in progress(range(iterations), description, "iteration"):
        active = (r.norm(dim=1) > tolerance * norms).nonzero().squeeze(1)
        if len(active) == 0:
            break
        direction, residual = p[active], r[active]
        product = operator(direction)
        curvature = _dots(direction, product)
        if not (curvature > 0).all() or not (rz[active] > 0).all():
            raise ForebearError(
                f"{description}: the curvature or its preconditioner is not positive definite; raise the damping."
            )
        step = (rz[active] / curvature)[:, None]
        x[active] += step * direction
        residual = residual - step * product
        z = precondition(residual)
        before, rz[active] = rz[active], _dots(residual, z)
        r[active], p[active] = residual, z + (rz[active] / before)[:, None] * direction
        spent[active.cpu()] += 1
    final = residuals(operator, x, b) if spent.any() else r.norm(dim=1) / norms
    return Solution(x, final, spent)


def lissa(operators: Sequence[Operator], b: Tensor, scale: float, steps: int, description: str = "lissa") -> Tensor:
    """x ← x + (b − A_k x)/scale: the Neumann series of A⁻¹ b with a sample of the data at each step.

    Agarwal et al. 2017, arXiv 1602.03943; A_k are used in turn. It approaches A⁻¹ b for a
    scale of at least the largest eigenvalue of every A_k, along an eigenvector with
    eigenvalue a in about scale/a steps.

    Raises:
        ForebearError: it diverges.
    """
    x = b / scale
    for k in progress(range(steps), description, "step"):
        x = x + (b - operators[k % len(operators)](x)) / scale
    if not torch.isfinite(x).all():
        raise ForebearError(f"{description}: diverged with the scale {scale}; raise the damping.")
    return x


def largest_eigenvalue(operator: Operator, like: Tensor, iterations: int, generator: torch.Generator) -> float:
    """The largest eigenvalue by power iteration from a random vector; `like` is any [Q, P]."""
    vector = _random_vector(like, generator)
    value = 0.0
    for _ in range(iterations):
        product = operator(vector)
        value = product.norm().item()
        vector = product / value
    return value


@dataclass(frozen=True)
class KrylovInverse:
    """V (1 + T)⁻¹ Vᵀ: the inverse of 1 + M restricted to a Krylov space, in which M is T."""

    basis: Tensor  # V as rows, [rank, P], orthonormal
    inner: Tensor  # (1 + T)⁻¹, [rank, rank]

    def __call__(self, b: Tensor) -> Tensor:
        """[Q, P] → [Q, P]; what lies outside of the space is dropped, as by Schioppa et al.

        To keep it as it is would be the inverse if M vanished there; it does not, and the
        residual would be ‖M b‖, thousands of times ‖b‖.
        """
        return b @ self.basis.T @ self.inner @ self.basis


def arnoldi(
    operator: Operator, like: Tensor, rank: int, generator: torch.Generator, description: str = "arnoldi"
) -> KrylovInverse:
    """Arnoldi's iteration on a symmetric M (Schioppa et al. 2022, arXiv 2112.03052, section 3.2).

    One random vector is multiplied `rank` times whatever the number of systems. Every new
    vector is orthogonalised twice against all before it, so the basis stays orthonormal.
    """
    basis = [_random_vector(like, generator)]
    products = []
    for _ in progress(range(rank), description, "vector"):
        product = operator(basis[-1])
        products.append(product)
        rest = product
        known = torch.cat(basis)
        for _ in range(2):
            rest = rest - rest @ known.T @ known
        norm = rest.norm()
        if len(basis) == rank or norm <= 10 * torch.finfo(product.dtype).eps * product.norm():
            break  # the space is full, or M maps it to itself
        basis.append(rest / norm)
    known = torch.cat(basis)
    restricted = known @ torch.cat(products).T
    one = torch.eye(len(known), dtype=known.dtype, device=known.device)
    return KrylovInverse(known, torch.linalg.inv(one + (restricted + restricted.T) / 2))


def residuals(operator: Operator, x: Tensor, b: Tensor) -> Tensor:
    """‖b − A x‖ / ‖b‖ of every row, [Q]; costs one product."""
    return (b - operator(x)).norm(dim=1) / b.norm(dim=1).clamp_min(torch.finfo(b.dtype).tiny)


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of the rows, [Q]."""
    return (one * other).sum(1)


def _random_vector(like: Tensor, generator: torch.Generator) -> Tensor:
    """A random unit vector [1, P] of the type and device of [Q, P]."""
    vector = torch.randn(1, like.shape[1], generator=generator, dtype=torch.float64)
    return (vector / vector.norm()).to(like)
