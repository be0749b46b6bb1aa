"""The chain of `chain`, with the exact Gauss-Newton matrix of every stage in place of EK-FAC.

Stages, α, damping and units are those of EK-FAC: H̃ = H + α + λ_b, where λ_b is the damping
that the block has under EK-FAC. What differs is H alone, so a difference between two
estimators is a difference of curvatures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forebear.data.sequences import Example
from forebear.errors import ForebearError
from forebear.estimators import Solver
from forebear.factors.gauss_newton import GaussNewton, pack, unpack
from forebear.factors.kronecker import precondition
from forebear.gradients.blocks import Block
from forebear.queries.chain import Curvature, inverse_functions, is_empty
from forebear.queries.solvers import (
    Operator,
    Solution,
    arnoldi,
    conjugate_gradient,
    largest_eigenvalue,
    lissa,
    residuals,
)

POWER_ITERATIONS = 10
REFERENCE_ITERATIONS = 1000  # then it is given up


@dataclass(frozen=True)
class SolverOptions:
    """What the solvers work on and what stops them; fields as the config's `solvers`."""

    queries: int
    sequences: int | None  # of each stage; None for all
    reference_tolerance: float  # of the reference and its check, which have as many iterations as they take
    tolerance: float  # of CG: ‖b − H̃ x‖ / ‖b‖
    iterations: int  # of CG from zero, at most
    refinements: int  # CG iterations from EK-FAC's solution
    rank: int  # Krylov vectors of Arnoldi
    lissa_steps: int  # at most
    lissa_sequences: int  # sequences behind each of LiSSA's steps


@dataclass(frozen=True)
class Link:
    """One inverse of the chain: scale · (H + α + λ)⁻¹."""

    name: str  # for progress and reports
    gauss_newton: GaussNewton
    curvature: Curvature  # EK-FAC's, for the damping and as preconditioner
    scale: float


def choose_queries(total: int, queries: int) -> Tensor:
    """Places of `queries` of the `total` queries, evenly spaced; of all, if there are fewer."""
    return torch.linspace(0, total - 1, min(queries, total)).round().long()


def choose_sequences(examples: Sequence[Example], sequences: int | None, seed: int) -> list[Example]:
    """A fixed random sample of a stage's sequences; all of them for None."""
    if sequences is None or sequences >= len(examples):
        return list(examples)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return [examples[i] for i in sorted(order[:sequences].tolist())]


def solve_chain(
    gradients: Mapping[str, Tensor],
    blocks: Sequence[Block],
    links: Sequence[Link],
    solver: Solver,
    options: SolverOptions,
    seed: int,
) -> tuple[dict[str, Tensor], list[Solution]]:
    """Apply scale · H̃⁻¹ of every link to the query gradients, the first link first.

    Args:
        gradients: block → ∇m [Q, O, I].

    Returns:
        block → [Q, O, I], and each link's solution with its residuals.
    """
    vectors, solutions = pack(gradients, blocks).to(links[0].gauss_newton.model.device), []
    for link in links:
        empty = _empty(link.curvature, blocks, vectors)
        vectors = torch.where(empty, 0, vectors)
        solution = SOLVERS[solver](link, vectors, options, torch.Generator().manual_seed(seed))
        vectors = link.scale * torch.where(empty, 0, solution.x)  # Arnoldi's basis is random there
        solutions.append(solution)
    return unpack(vectors.cpu(), blocks), solutions


def dampings(curvature: Curvature, blocks: Sequence[Block], like: Tensor) -> Tensor:
    """α + λ of every parameter, [P]; 1 in blocks without curvature, where every vector that is solved for is zero."""
    found = _by_parameter(
        [curvature.pull + curvature.damping.of(curvature.eigenvalues[b.name]) for b in blocks], blocks
    )
    return torch.where(_empty(curvature, blocks, like), 1, found.to(like))


def _empty(curvature: Curvature, blocks: Sequence[Block], like: Tensor) -> Tensor:
    """[P] bool: which parameters are of blocks that have nothing to invert."""
    return _by_parameter([is_empty(curvature, curvature.eigenvalues[b.name]) for b in blocks], blocks).to(like.device)


def _by_parameter(values: Sequence[float], blocks: Sequence[Block]) -> Tensor:
    """Values of blocks as [P]."""
    sizes = [block.shape[0] * block.shape[1] for block in blocks]
    return torch.tensor(values).repeat_interleave(torch.tensor(sizes))


def damped(operator: Operator, damping: Tensor) -> Operator:
    """H + damping."""
    return lambda vectors: operator(vectors) + damping * vectors


def ekfac_inverse(curvature: Curvature, blocks: Sequence[Block]) -> Operator:
    """EK-FAC's damped inverse on packed vectors, on the processor, where the factors are."""
    functions = inverse_functions(curvature, blocks)

    def inverse(vectors: Tensor) -> Tensor:
        solved = precondition(unpack(vectors.cpu(), blocks), blocks, curvature.basis, functions)
        return pack(solved, blocks).to(vectors.device)

    return inverse


def _cg(link: Link, b: Tensor, options: SolverOptions, generator: torch.Generator) -> Solution:
    operator = damped(link.gauss_newton, dampings(link.curvature, link.gauss_newton.blocks, b))
    return conjugate_gradient(operator, b, options.tolerance, options.iterations, description=f"cg, {link.name}")


def _pcg(link: Link, b: Tensor, options: SolverOptions, generator: torch.Generator) -> Solution:
    """From EK-FAC's solution, which no iteration leaves as it is.

    The first iteration takes it as direction only and finds its length: EK-FAC's inverse is
    far too large where the damping is small (a residual of 200‖b‖ in the study of facts),
    and undoing that would take the first iterations.
    """
    blocks = link.gauss_newton.blocks
    operator, inverse = (
        damped(link.gauss_newton, dampings(link.curvature, blocks, b)),
        ekfac_inverse(link.curvature, blocks),
    )
    if options.refinements == 0:
        x = inverse(b)
        return Solution(x, residuals(operator, x, b), torch.zeros(len(b), dtype=torch.int64))
    return conjugate_gradient(
        operator, b, options.tolerance, options.refinements, inverse, description=f"pcg, {link.name}"
    )


def _reference(link: Link, b: Tensor, options: SolverOptions, generator: torch.Generator) -> Solution:
    """Preconditioned CG from zero until it has converged."""
    blocks = link.gauss_newton.blocks
    inverse = ekfac_inverse(link.curvature, blocks)
    return _converged(link, b, options, inverse, None)


def _check(link: Link, b: Tensor, options: SolverOptions, generator: torch.Generator) -> Solution:
    """Plain CG from a random start until it has converged: no step in common with the reference.

    The start is a random vector of the length that has a residual of about ‖b‖.
    """
    blocks = link.gauss_newton.blocks
    noise = torch.randn(b.shape, generator=generator, dtype=torch.float64).to(b)
    product = damped(link.gauss_newton, dampings(link.curvature, blocks, b))(noise)
    start = noise * (b.norm(dim=1) / product.norm(dim=1))[:, None]
    return _converged(link, b, options, None, start)


def _converged(
    link: Link, b: Tensor, options: SolverOptions, inverse: Operator | None, start: Tensor | None
) -> Solution:
    operator = damped(link.gauss_newton, dampings(link.curvature, link.gauss_newton.blocks, b))
    solution = conjugate_gradient(
        operator, b, options.reference_tolerance, REFERENCE_ITERATIONS, inverse, start, f"reference, {link.name}"
    )
    worst = solution.residuals.max().item()
    if worst > 2 * options.reference_tolerance:
        raise ForebearError(
            f"reference, {link.name}: the residual is {worst:.2g} after {solution.iterations.max()} iterations, not "
            f"{options.reference_tolerance:g}; raise the damping or `reference_tolerance`."
        )
    return solution


def _lissa(link: Link, b: Tensor, options: SolverOptions, generator: torch.Generator) -> Solution:
    """The scale is the largest eigenvalue of any sample; the steps are those after which the
    slowest direction's error is `tolerance`, or the cap."""
    damping = dampings(link.curvature, link.gauss_newton.blocks, b)
    samples = [damped(part, damping) for part in link.gauss_newton.samples(options.lissa_sequences, generator)]
    scale = max(largest_eigenvalue(sample, b, POWER_ITERATIONS, generator) for sample in samples)
    wanted = np.log(1 / options.tolerance) * scale / damping.min().item()
    steps = int(min(np.ceil(wanted), options.lissa_steps))
    print(f"lissa, {link.name}: scale {scale:.4g}, {steps} steps of {wanted:.3g} until every direction has converged")
    x = lissa(samples, b, scale, steps, f"lissa, {link.name}")
    return Solution(x, residuals(damped(link.gauss_newton, damping), x, b), torch.full((len(b),), steps))


def _arnoldi(link: Link, b: Tensor, options: SolverOptions, generator: torch.Generator) -> Solution:
    """(D + H)⁻¹ = D^-½ (1 + D^-½ H D^-½)⁻¹ D^-½ with damping D, so that the Krylov space is spent
    on the directions in which the curvature outweighs the damping."""
    damping = dampings(link.curvature, link.gauss_newton.blocks, b)
    root = damping.rsqrt()
    inverse = arnoldi(
        lambda vectors: root * link.gauss_newton(root * vectors), b, options.rank, generator, f"arnoldi, {link.name}"
    )
    x = root * inverse(root * b)
    rank = torch.full((len(b),), len(inverse.basis))
    return Solution(x, residuals(damped(link.gauss_newton, damping), x, b), rank)


SOLVERS: dict[Solver, Callable[[Link, Tensor, SolverOptions, torch.Generator], Solution]] = {
    "cg": _cg,
    "pcg": _pcg,
    "lissa": _lissa,
    "arnoldi": _arnoldi,
    "reference": _reference,
    "check": _check,
}
