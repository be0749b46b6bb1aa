"""Exact curvature products and the solvers on them equal dense matrices from per-token Jacobians."""

import copy
from dataclasses import replace

import pytest
import torch

from chains import OPTIONS
from conftest import parameter_gradients
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.gauss_newton import GaussNewton, pack, unpack
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.outer_products import formed
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.queries.solve import SolvedInverse

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
        self.operators, self.dense, self.ekfac = [], [], []
        for k in range(2):
            model, examples = models[k], stage_examples[k][:4]
            basis = compute_eigenbasis(fit_covariances(model, self.blocks, examples, k, 40))
            eigenvalues = fit_eigenvalues(model, self.blocks, examples, basis, k, 40)
            operator = GaussNewton(model, self.blocks, examples, batch_tokens=20)
            dense = dense_gauss_newton(model, self.blocks, examples)
            self.operators.append(operator)
            self.dense.append(dense)
            self.ekfac.append(DampedInverse(basis, eigenvalues, DAMPINGS[k], PULLS[k], PULLS[k] or 1.0, str(k)))

    def solved(self, solver, options=OPTIONS, stages=(1, 0), **changed):
        """The inverses of some stages by a solver; `changed` are fields of EK-FAC's."""
        return [
            SolvedInverse(
                DenseProducts(self.operators[k], self.dense[k]), replace(self.ekfac[k], **changed), solver, options, 0
            )
            for k in stages
        ]

    def apply(self, inverses):
        """∇m after some inverses, [Q, P], and what they report, by name."""
        reports = {}
        return pack(apply_chain(self.gradients, self.blocks, inverses, reports.__setitem__), self.blocks), reports

    def expected(self, stages=(1, 0)):
        """∇m α H̃₂⁻¹ H̃₁⁻¹ by dense solves, [Q, P]."""
        vectors = pack(self.gradients, self.blocks)
        for k in stages:
            vectors = self.ekfac[k].scale * torch.linalg.solve(self.damped(k), vectors.T).T
        return vectors

    def damped(self, k):
        """H + α + λ of a stage as a dense matrix; λ is a number, or a part of the mean of a block's Λ."""
        added = []
        for block in self.blocks:
            mean = self.ekfac[k].eigenvalues[block.name].mean().item()
            damping = DAMPINGS[k].absolute if DAMPINGS[k].relative is None else DAMPINGS[k].relative * mean
            added += [PULLS[k] + damping] * (block.shape[0] * block.shape[1])
        return self.dense[k] + torch.diag(torch.tensor(added, dtype=torch.float64))


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
    solved, reports = stages.apply(stages.solved(solver))
    assert difference(solved, stages.expected()) < 1e-6
    assert list(reports) == ["1", "0"]
    for report in reports.values():
        assert report["residuals"].shape == report["iterations"].shape == (3,)
        assert (report["residuals"] < 1e-6).all()
        assert (report["iterations"] > 0).all()


def test_lissa_equals_a_dense_solve_where_the_damping_lets_it_converge(stages):
    """Its scale and its steps are its own; with little damping there would be too many."""
    damping = 0.2 * torch.linalg.eigvalsh(stages.dense[1])[-1].item()
    options = replace(OPTIONS, tolerance=1e-4, lissa_steps=1000)
    inverses = stages.solved("lissa", options, stages=[1], damping=Damping(absolute=damping))
    solved, reports = stages.apply(inverses)
    matrix = stages.dense[1] + (PULLS[1] + damping) * torch.eye(len(stages.dense[1]), dtype=torch.float64)
    vectors = pack(stages.gradients, stages.blocks)
    assert difference(solved, PULLS[1] * torch.linalg.solve(matrix, vectors.T).T) < 1e-4
    assert (reports["1"]["iterations"] < 100).all()


def test_the_order_of_the_stages_and_their_scales_matter(stages):
    swapped, _ = stages.apply(stages.solved("cg", stages=[0, 1]))
    assert difference(swapped, stages.expected()) > 1e-2
    unscaled, _ = stages.apply(stages.solved("cg", scale=1.0))
    assert difference(PULLS[1] * unscaled, stages.expected()) < 1e-6


def test_pcg_without_iterations_is_ekfac(stages):
    expected, silent = stages.apply(stages.ekfac[::-1])
    assert silent == {"1": {}, "0": {}}
    solved, reports = stages.apply(stages.solved("pcg", replace(OPTIONS, refinements=0)))
    assert difference(solved, expected) < 1e-12
    assert all((report["residuals"] > 1e-2).all() for report in reports.values())  # EK-FAC is an approximation


def test_exact_inverses_and_ekfacs_go_together_in_a_chain(stages):
    """Of two operators each does its part, whatever the other is."""
    mixed, reports = stages.apply([*stages.solved("cg", stages=[1]), stages.ekfac[0]])
    first = unpack(stages.expected(stages=[1]), stages.blocks)
    expected = apply_chain(first, stages.blocks, [stages.ekfac[0]])
    assert difference(mixed, pack(expected, stages.blocks)) < 1e-6
    assert [list(report) for report in reports.values()] == [["iterations", "residuals"], []]


def test_the_first_refinement_changes_only_the_length(stages):
    one, _ = stages.apply([stages.ekfac[1]])
    other, _ = stages.apply(stages.solved("pcg", replace(OPTIONS, refinements=1), stages=[1]))
    torch.testing.assert_close(
        torch.cosine_similarity(one, other), torch.ones(len(one), dtype=one.dtype), rtol=0, atol=1e-12
    )


def test_refinement_brings_ekfac_nearer_to_the_solution(stages):
    """The error in the curvature's own norm falls with every iteration."""
    expected, matrix, errors = stages.expected(stages=[1]), stages.damped(1), []
    for refinements in (1, 2, 5, 25):
        solved, _ = stages.apply(stages.solved("pcg", replace(OPTIONS, refinements=refinements), stages=[1]))
        errors.append(((solved - expected) @ matrix * (solved - expected)).sum().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_a_negative_damping_is_refused(stages):
    with pytest.raises(ForebearError, match="raise the damping"):
        stages.apply(stages.solved("cg", stages=[1], damping=Damping(absolute=-1e4)))
