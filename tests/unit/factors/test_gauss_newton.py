"""Exact curvature products and the solvers on them equal dense matrices from per-token Jacobians."""

import copy
from dataclasses import replace

import pytest
import torch

from conftest import parameter_gradients
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.gauss_newton import GaussNewton, pack, unpack
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.outer_products import formed
from forebear.queries.chain import Curvature, precondition_chain
from forebear.queries.gradients import query_gradients
from forebear.queries.solve import Link, SolverOptions, dampings, solve_chain

OPTIONS = SolverOptions(
    queries=3,
    sequences=None,
    reference_tolerance=1e-10,
    tolerance=1e-10,
    iterations=5000,
    refinements=5000,
    rank=10_000,
    lissa_steps=100_000,
    lissa_sequences=1000,
)
PULLS = [0.0, 0.3]
DAMPINGS = [Damping(relative=0.05), Damping(absolute=0.02)]


def dense_gauss_newton(model, blocks, examples):
    """(1/N) Σ_z Σ_t J^T (diag p − p pᵀ) J, [P, P], one unpadded sequence and one logit at a time."""
    total = 0
    for example in examples:
        logits = model(example.ids[None]).logits[0]
        for t in range(example.first_target, len(example.ids)):
            rows = [parameter_gradients(model, blocks, logit) for logit in logits[t - 1]]
            jacobian = torch.cat([pack({n: g[None] for n, g in row.items()}, blocks) for row in rows])
            p = logits[t - 1].detach().softmax(-1)
            total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    return total / len(examples)


class DenseProducts(GaussNewton):
    """The dense matrix in the operator's place: solvers need thousands of products."""

    def __init__(self, operator, dense):
        super().__init__(operator.model, operator.blocks, operator.examples, 20)
        self.dense = dense

    def __call__(self, vectors):
        return vectors @ self.dense

    def samples(self, sequences, generator):
        return [self]


class Stages:
    """Two consecutive stages with EK-FAC's curvature, the exact operator and the dense matrix."""

    def __init__(self, models, stage_examples, queries, split_heads):
        self.blocks = [b for b in tracked_blocks(models[0], split_heads) if "layers/1" in b.name]
        gradients, _ = query_gradients(models[1], self.blocks, queries, 40)
        self.gradients = {name: formed(part) for name, part in gradients.items()}
        self.operators, self.dense, self.links = [], [], []
        for k in range(2):
            model, examples = models[k], stage_examples[k][:4]
            basis = compute_eigenbasis(fit_covariances(model, self.blocks, examples, k, 40))
            eigenvalues = fit_eigenvalues(model, self.blocks, examples, basis, k, 40)
            curvature = Curvature(basis, eigenvalues, DAMPINGS[k], PULLS[k])
            operator = GaussNewton(model, self.blocks, examples, batch_tokens=20)
            dense = dense_gauss_newton(model, self.blocks, examples)
            self.operators.append(operator)
            self.dense.append(dense)
            self.links.insert(0, Link(str(k), DenseProducts(operator, dense), curvature, PULLS[k] or 1.0))

    def expected(self):
        """∇m α H̃₂⁻¹ H̃₁⁻¹ by dense solves, [Q, P]."""
        vectors = pack(self.gradients, self.blocks)
        for link, dense in zip(self.links, reversed(self.dense), strict=True):
            damping = dampings(link.curvature, self.blocks, vectors)
            vectors = link.scale * torch.linalg.solve(dense + torch.diag(damping), vectors.T).T
        return vectors


def difference(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture(scope="module", params=[False, True], ids=["fused", "split_heads"])
def stages(request, models, stage_examples, queries):
    return Stages(models, stage_examples, queries, request.param)


def test_products_equal_the_dense_matrix(stages):
    vectors = torch.randn(3, stages.dense[0].shape[0], dtype=torch.float64)
    for operator, dense in zip(stages.operators, stages.dense, strict=True):
        assert difference(operator(vectors), vectors @ dense) < 1e-12


def test_products_leave_model_and_vectors_alone(stages, models):
    """A frozen model serves as well, and two calls give the same bits."""
    operator = stages.operators[0]
    frozen = GaussNewton(copy.deepcopy(models[0]).requires_grad_(False), stages.blocks, operator.examples, 20)
    vectors = torch.randn(2, stages.dense[0].shape[0], dtype=torch.float64)
    before = vectors.clone()
    assert torch.equal(operator(vectors), frozen(vectors))
    assert torch.equal(vectors, before)
    assert all(parameter.grad is None for parameter in models[0].parameters())


def test_samples_partition_the_mean(stages):
    """Weighted by their sizes, the samples' products add up to the whole one's."""
    operator = stages.operators[1]
    samples = operator.samples(2, torch.Generator().manual_seed(0))
    assert len(samples) == 2
    vectors = torch.randn(2, stages.dense[0].shape[0], dtype=torch.float64)
    total = sum(len(sample.examples) / len(operator.examples) * sample(vectors) for sample in samples)
    assert difference(total, operator(vectors)) < 1e-12


def test_unpack_inverts_pack(stages):
    again = unpack(pack(stages.gradients, stages.blocks), stages.blocks)
    assert all(torch.equal(again[name], gradient) for name, gradient in stages.gradients.items())


@pytest.mark.parametrize("solver", ["cg", "pcg", "arnoldi", "reference", "check"])
def test_two_stages_equal_dense_solves(stages, solver):
    solved, solutions = solve_chain(stages.gradients, stages.blocks, stages.links, solver, OPTIONS, seed=0)
    assert difference(pack(solved, stages.blocks), stages.expected()) < 1e-6
    assert all((solution.residuals < 1e-6).all() for solution in solutions)


def test_lissa_equals_a_dense_solve_where_the_damping_lets_it_converge(stages):
    """Its scale and its steps are its own; with little damping there would be too many."""
    largest = torch.linalg.eigvalsh(stages.dense[1])[-1].item()
    link = stages.links[0]
    link = replace(link, curvature=replace(link.curvature, damping=Damping(absolute=0.2 * largest)))
    options = replace(OPTIONS, tolerance=1e-4, lissa_steps=1000)
    solved, (solution,) = solve_chain(stages.gradients, stages.blocks, [link], "lissa", options, seed=0)
    vectors = pack(stages.gradients, stages.blocks)
    damping = torch.diag(dampings(link.curvature, stages.blocks, vectors))
    expected = link.scale * torch.linalg.solve(stages.dense[1] + damping, vectors.T).T
    assert difference(pack(solved, stages.blocks), expected) < 1e-4
    assert (solution.iterations < 100).all()


def test_the_order_of_the_stages_and_their_scales_matter(stages):
    swapped, _ = solve_chain(stages.gradients, stages.blocks, stages.links[::-1], "cg", OPTIONS, seed=0)
    assert difference(pack(swapped, stages.blocks), stages.expected()) > 1e-2
    unscaled = [replace(link, scale=1.0) for link in stages.links]
    solved, _ = solve_chain(stages.gradients, stages.blocks, unscaled, "cg", OPTIONS, seed=0)
    assert difference(PULLS[1] * pack(solved, stages.blocks), stages.expected()) < 1e-6


def test_pcg_without_iterations_is_ekfac(stages):
    links = [(link.curvature, link.scale) for link in stages.links]
    expected = pack(precondition_chain(stages.gradients, stages.blocks, links), stages.blocks)
    options = replace(OPTIONS, refinements=0)
    solved, solutions = solve_chain(stages.gradients, stages.blocks, stages.links, "pcg", options, seed=0)
    assert difference(pack(solved, stages.blocks), expected) < 1e-12
    assert all((solution.residuals > 1e-2).all() for solution in solutions)  # EK-FAC is an approximation


def test_the_first_refinement_changes_only_the_length(stages):
    link = stages.links[0]
    ekfac = precondition_chain(stages.gradients, stages.blocks, [(link.curvature, 1.0)])
    options = replace(OPTIONS, refinements=1)
    solved, _ = solve_chain(stages.gradients, stages.blocks, [link], "pcg", options, seed=0)
    one, other = pack(ekfac, stages.blocks), pack(solved, stages.blocks)
    torch.testing.assert_close(
        torch.cosine_similarity(one, other), torch.ones(len(one), dtype=one.dtype), rtol=0, atol=1e-12
    )


def test_refinement_brings_ekfac_nearer_to_the_solution(stages):
    """The error in the curvature's own norm falls with every iteration."""
    link = stages.links[0]
    vectors = pack(stages.gradients, stages.blocks)
    matrix = stages.dense[1] + torch.diag(dampings(link.curvature, stages.blocks, vectors))
    expected = link.scale * torch.linalg.solve(matrix, vectors.T).T
    errors = []
    for refinements in (1, 2, 5, 25):
        options = replace(OPTIONS, refinements=refinements)
        error = (
            pack(solve_chain(stages.gradients, stages.blocks, [link], "pcg", options, 0)[0], stages.blocks) - expected
        )
        errors.append((error @ matrix * error).sum().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_a_negative_damping_is_refused(stages):
    link = stages.links[0]
    curvature = replace(link.curvature, damping=Damping(absolute=-1e4))
    with pytest.raises(ForebearError, match="raise the damping"):
        solve_chain(stages.gradients, stages.blocks, [replace(link, curvature=curvature)], "cg", OPTIONS, seed=0)
