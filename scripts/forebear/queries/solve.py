"""An inverse of the chain with the exact Gauss-Newton matrix of its stage in place of EK-FAC, by a solver.

Stages, α, damping and units are those of EK-FAC: H̃ = H + α + λ_b, where λ_b is the damping
that the block has under EK-FAC. What differs is H alone, so a difference between two
estimators is a difference of curvatures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from forebear.data.sequences import Example
from forebear.errors import ForebearError
from forebear.estimators import Solver
from forebear.factors.gauss_newton import GaussNewton, pack, unpack
from forebear.factors.kronecker import precondition
from forebear.gradients.blocks import Block
from forebear.gradients.outer_products import Matrices, formed
from forebear.queries.chain import DampedInverse, Report
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


def choose_queries(total: int, queries: int) -> Tensor:
    """Indices of `queries` of the `total` queries, evenly spaced; of all, if there are fewer."""
    return torch.linspace(0, total - 1, min(queries, total)).round().long()


def choose_sequences(examples: Sequence[Example], sequences: int | None, seed: int) -> list[Example]:
    """A fixed random sample of a stage's sequences; all of them for None."""
    if sequences is None or sequences >= len(examples):
        return list(examples)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return [examples[i] for i in sorted(order[:sequences].tolist())]


@dataclass(frozen=True)
class SolvedInverse:
    """scale · (H + α + λ)⁻¹ with the exact Gauss-Newton matrix H, by a solver, on the device of H's model.

    What an application reports are a solution's `iterations` and `residuals`.
    """

    gauss_newton: GaussNewton
    ekfac: DampedInverse  # for its name, scale, α and λ, and as preconditioner
    solver: Solver
    options: SolverOptions
    seed: int  # of what a solver draws

    @property
    def name(self) -> str:
        return self.ekfac.name

    def apply(self, vectors: Mapping[str, Matrices], blocks: Sequence[Block]) -> tuple[dict[str, Tensor], Report]:
        """As `Inverse.apply`; `blocks` are all that H is of, as a solver needs them at the same time."""
        b = pack({block.name: formed(vectors[block.name]) for block in blocks}, blocks)
        b = b.to(self.gauss_newton.model.device)
        empty = _empty(self.ekfac, blocks, b)
        generator = torch.Generator().manual_seed(self.seed)
        solution = SOLVERS[self.solver](self, torch.where(empty, 0, b), generator)
        x = self.ekfac.scale * torch.where(empty, 0, solution.x)  # Arnoldi's basis is random there
        return unpack(x.cpu(), blocks), {"iterations": solution.iterations, "residuals": solution.residuals}

    def dampings(self, like: Tensor) -> Tensor:
        """α + λ of every parameter, [P]; 1 in blocks without curvature, where every vector that is solved for is zero."""
        blocks, values = self.gauss_newton.blocks, self.ekfac.eigenvalues
        found = _by_parameter([self.ekfac.added(values[block.name]) for block in blocks], blocks)
        return torch.where(_empty(self.ekfac, blocks, like), 1, found.to(like))

    def damped(self, like: Tensor) -> Operator:
        """H + α + λ."""
        return damped(self.gauss_newton, self.dampings(like))

    def preconditioner(self) -> Operator:
        """(H + α + λ)⁻¹ with EK-FAC's H on packed vectors, on the processor, where the factors are."""
        blocks = self.gauss_newton.blocks
        functions = replace(self.ekfac, scale=1.0).functions(blocks)

        def inverse(vectors: Tensor) -> Tensor:
            solved = precondition(unpack(vectors.cpu(), blocks), blocks, self.ekfac.basis, functions)
            return pack(solved, blocks).to(vectors.device)

        return inverse


def _empty(ekfac: DampedInverse, blocks: Sequence[Block], like: Tensor) -> Tensor:
    """[P] bool: which parameters are of blocks that have nothing to invert."""
    return _by_parameter([ekfac.is_empty(ekfac.eigenvalues[b.name]) for b in blocks], blocks).to(like.device)


def _by_parameter(values: Sequence[float], blocks: Sequence[Block]) -> Tensor:
    """Values of blocks as [P]."""
    sizes = [block.shape[0] * block.shape[1] for block in blocks]
    return torch.tensor(values).repeat_interleave(torch.tensor(sizes))


def damped(operator: Operator, damping: Tensor) -> Operator:
    """H + damping."""
    return lambda vectors: operator(vectors) + damping * vectors


def _cg(of: SolvedInverse, b: Tensor, generator: torch.Generator) -> Solution:
    options = of.options
    return conjugate_gradient(of.damped(b), b, options.tolerance, options.iterations, description=f"cg, {of.name}")


def _pcg(of: SolvedInverse, b: Tensor, generator: torch.Generator) -> Solution:
    """From EK-FAC's solution, which no iteration leaves as it is.

    The first iteration takes it as direction only and finds its length: EK-FAC's inverse is
    far too large where the damping is small (a residual of 200‖b‖ in the study of facts),
    and undoing that would take the first iterations.
    """
    operator, inverse = of.damped(b), of.preconditioner()
    if of.options.refinements == 0:
        x = inverse(b)
        return Solution(x, residuals(operator, x, b), torch.zeros(len(b), dtype=torch.int64))
    stop = (of.options.tolerance, of.options.refinements)
    return conjugate_gradient(operator, b, *stop, inverse, description=f"pcg, {of.name}")


def _reference(of: SolvedInverse, b: Tensor, generator: torch.Generator) -> Solution:
    """Preconditioned CG from zero until it has converged."""
    return _converged(of, b, of.preconditioner(), None)


def _check(of: SolvedInverse, b: Tensor, generator: torch.Generator) -> Solution:
    """Plain CG from a random start until it has converged: no step in common with the reference.

    The start is a random vector of the length that has a residual of about ‖b‖.
    """
    noise = torch.randn(b.shape, generator=generator, dtype=torch.float64).to(b)
    product = of.damped(b)(noise)
    start = noise * (b.norm(dim=1) / product.norm(dim=1))[:, None]
    return _converged(of, b, None, start)


def _converged(of: SolvedInverse, b: Tensor, inverse: Operator | None, start: Tensor | None) -> Solution:
    tolerance, description = of.options.reference_tolerance, f"reference, {of.name}"
    stop = (tolerance, REFERENCE_ITERATIONS)
    solution = conjugate_gradient(of.damped(b), b, *stop, inverse, start, description)
    worst = solution.residuals.max().item()
    if worst > 2 * tolerance:
        raise ForebearError(
            f"{description}: the residual is {worst:.2g} after {solution.iterations.max()} iterations, not "
            f"{tolerance:g}; raise the damping or `reference_tolerance`."
        )
    return solution


def _lissa(of: SolvedInverse, b: Tensor, generator: torch.Generator) -> Solution:
    """The scale is the largest eigenvalue of any sample; the steps are those after which the
    slowest direction's error is `tolerance`, or the cap."""
    damping, options = of.dampings(b), of.options
    samples = [damped(part, damping) for part in of.gauss_newton.samples(options.lissa_sequences, generator)]
    scale = max(largest_eigenvalue(sample, b, POWER_ITERATIONS, generator) for sample in samples)
    wanted = np.log(1 / options.tolerance) * scale / damping.min().item()
    steps = int(min(np.ceil(wanted), options.lissa_steps))
    print(f"lissa, {of.name}: scale {scale:.4g}, {steps} steps of {wanted:.3g} until every direction has converged")
    x = lissa(samples, b, scale, steps, f"lissa, {of.name}")
    return Solution(x, residuals(of.damped(b), x, b), torch.full((len(b),), steps))


def _arnoldi(of: SolvedInverse, b: Tensor, generator: torch.Generator) -> Solution:
    """(D + H)⁻¹ = D^-½ (1 + D^-½ H D^-½)⁻¹ D^-½ with damping D, so that the Krylov space is spent
    on the directions in which the curvature outweighs the damping."""
    root = of.dampings(b).rsqrt()
    inverse = arnoldi(
        lambda vectors: root * of.gauss_newton(root * vectors), b, of.options.rank, generator, f"arnoldi, {of.name}"
    )
    x = root * inverse(root * b)
    rank = torch.full((len(b),), len(inverse.basis))
    return Solution(x, residuals(of.damped(b), x, b), rank)


SOLVERS: dict[Solver, Callable[[SolvedInverse, Tensor, torch.Generator], Solution]] = {
    "cg": _cg,
    "pcg": _pcg,
    "lissa": _lissa,
    "arnoldi": _arnoldi,
    "reference": _reference,
    "check": _check,
}
