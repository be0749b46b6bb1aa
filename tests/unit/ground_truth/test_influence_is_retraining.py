"""Scores of convex problems predict what retraining every stage does to the queries.

Document z of stage s gets the extra weight ε, every stage is solved again to machine
precision, and the central difference −dm/dε is compared with the score. The curvature of
least squares is a Kronecker product, and a block with one output has no left factor to
approximate, so that the engine's chain is exact in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jacrev, vmap

from forebear.evaluation.lds import document_effects
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.kronecker import Covariances, compute_eigenbasis, kfac_eigenvalues
from forebear.gradients.blocks import Block
from forebear.queries.chain import DampedInverse, apply_chain

EPSILON = 1e-4
PULLS = [0.0, 0.15, 0.25]
RIDGES = [0.02, 0.03, 0.01]


@dataclass(frozen=True)
class Stage:
    """A convex objective, mean ℓ(θ) + (λ/2)‖θ‖² + (α/2)‖θ − θ_before‖²."""

    inputs: Tensor  # [N, I], ending in a one
    targets: Tensor  # [N, ...]
    metric: Tensor  # [O, O], of squared errors
    pull: float
    ridge: float


def logistic(theta: Tensor, stage: Stage) -> Tensor:
    """Losses [N] of θ [1, I]."""
    return torch.nn.functional.softplus(-stage.targets * (stage.inputs @ theta.T).squeeze(1))


def least_squares(theta: Tensor, stage: Stage) -> Tensor:
    """Losses [N] of θ [O, I]; their mean has the Hessian metric ⊗ E[x xᵀ]."""
    errors = stage.inputs @ theta.T - stage.targets
    return ((errors @ stage.metric) * errors).sum(1) / 2


def softmax(theta: Tensor, stage: Stage) -> Tensor:
    """Losses [N] of θ [O, I]."""
    return torch.nn.functional.cross_entropy(stage.inputs @ theta.T, stage.targets, reduction="none")


def solve(loss, stages: list[Stage], weights: list[Tensor], starts: list[Tensor], steps: int) -> list[Tensor]:
    """The minimisers [R, O, I] of every stage, for R weightings [R, N] of its documents at once.

    Newton's method from `starts` [O, I], no step longer than one.
    """
    shape = starts[0].shape
    before = torch.zeros(len(weights[0]), shape.numel(), dtype=torch.float64)
    solutions = []
    for stage, weight, start in zip(stages, weights, starts, strict=True):

        def objective(flat, before, w, stage=stage):
            proximity = stage.pull / 2 * (flat - before).square().sum()
            return w @ loss(flat.view(shape), stage) + stage.ridge / 2 * flat.square().sum() + proximity

        slope, curvature = vmap(grad(objective)), vmap(jacrev(grad(objective)))
        flat = start.flatten().expand_as(before)
        for _ in range(steps):
            step = torch.linalg.solve(curvature(flat, before, weight), slope(flat, before, weight))
            flat = flat - step / step.norm(dim=1, keepdim=True).clamp_min(1)
        assert slope(flat, before, weight).abs().max() < 1e-13
        before = flat
        solutions.append(flat.view(-1, *shape))
    return solutions


class Problem:
    """Solved stages with their documents and queries, and what retraining does."""

    def __init__(self, loss, stages: list[Stage], queries: Stage, shape: tuple[int, int]):
        self.loss, self.stages, self.queries, self.shape = loss, stages, queries, shape
        zeros = [torch.zeros(shape, dtype=torch.float64)] * len(stages)
        self.models = [theta[0] for theta in solve(loss, stages, [self._mean(s) for s in stages], zeros, steps=40)]

    @staticmethod
    def _mean(stage: Stage, rows: int = 1) -> Tensor:
        return torch.full((rows, len(stage.inputs)), 1 / len(stage.inputs), dtype=torch.float64)

    def losses_after(self, stage: int, extra: Tensor) -> Tensor:
        """m [R, Q] after retraining with `extra` [R, N] added to the weights of a stage's documents."""
        weights = [self._mean(s, len(extra)) for s in self.stages]
        weights[stage] = weights[stage] + extra
        last = solve(self.loss, self.stages, weights, self.models, steps=6)[-1]
        return vmap(lambda theta: self.loss(theta, self.queries))(last)

    def retraining(self, stage: int) -> np.ndarray:
        """−dm/dε [N, Q] by central differences."""
        step = EPSILON * torch.eye(len(self.stages[stage].inputs), dtype=torch.float64)
        return ((self.losses_after(stage, -step) - self.losses_after(stage, step)) / (2 * EPSILON)).numpy()

    def gradients(self, theta: Tensor, of: Stage) -> Tensor:
        """∇ℓ of every document, [N, O, I]."""
        return jacrev(lambda t: self.loss(t, of))(theta)

    def hessian(self, stage: int) -> Tensor:
        """[OI, OI], of the mean loss at the stage's own minimiser."""
        of = self.stages[stage]

        def mean_loss(flat):
            return self.loss(flat.view(self.shape), of).mean()

        return jacrev(grad(mean_loss))(self.models[stage].flatten())

    def inverse(self, stage: int) -> DampedInverse:
        """That of the exact curvature in the engine's terms, not scaled."""
        of = self.stages[stage]
        if self.shape[0] == 1:
            activation, gradient = self.hessian(stage), torch.ones(1, 1, dtype=torch.float64)
        else:
            activation, gradient = of.inputs.T @ of.inputs / len(of.inputs), of.metric
        basis = compute_eigenbasis(Covariances({"map": activation}, {"map": gradient}))
        eigenvalues = kfac_eigenvalues(basis, [self.block], positions_per_sequence=1)
        return DampedInverse(basis, eigenvalues, Damping(absolute=of.ridge), of.pull)

    @property
    def block(self) -> Block:
        return Block("map", "map", "mlp", slice(0, self.shape[0]), self.shape, bias=True)

    def inverses(self, stage: int) -> list[DampedInverse]:
        later = [self.inverse(s) for s in range(len(self.stages) - 1, stage, -1)]
        return [*(replace(inverse, scale=inverse.pull) for inverse in later), self.inverse(stage)]

    def scores(self, inverses: list[DampedInverse], stage: int) -> np.ndarray:
        """[N, Q], by the engine."""
        measured = {"map": self.gradients(self.models[-1], self.queries)}
        columns = apply_chain(measured, [self.block], inverses)["map"]
        documents = self.gradients(self.models[stage], self.stages[stage])
        return (documents.flatten(1) @ columns.flatten(1).T).numpy()

    def dense_scores(self, stage: int) -> np.ndarray:
        """[N, Q], by the formula with exact Hessians."""
        vectors = self.gradients(self.models[stage], self.stages[stage]).flatten(1).T
        for s in range(stage, len(self.stages)):
            of = self.stages[s]
            damped = self.hessian(s) + (of.pull + of.ridge) * torch.eye(len(vectors), dtype=torch.float64)
            vectors = (1.0 if s == stage else of.pull) * torch.linalg.solve(damped, vectors)
        return (vectors.T @ self.gradients(self.models[-1], self.queries).flatten(1).T).numpy()


def make_problem(
    loss, outputs: int, stages: int, seed: int = 0, documents: Sequence[int] = (30, 30, 30), inputs: int = 4
) -> Problem:
    """Anisotropic inputs, along other directions in every stage, and noisy targets of a random map."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(0.3, 3.0, inputs - 1)

    def make_stage(number: int, pull: float, ridge: float) -> Stage:
        x = rng.normal(size=(number, inputs - 1)) * scales @ np.linalg.qr(rng.normal(size=(inputs - 1, inputs - 1)))[0]
        x = np.column_stack([x + rng.normal(size=inputs - 1), np.ones(number)])
        outcome = x @ rng.normal(size=(outputs, inputs)).T + rng.normal(size=(number, outputs))
        root = np.linalg.qr(rng.normal(size=(outputs, outputs)))[0] * np.geomspace(0.5, 1.5, outputs)
        targets = {logistic: np.sign(outcome[:, 0]), least_squares: outcome, softmax: outcome.argmax(1)}[loss]
        return Stage(torch.from_numpy(x), torch.from_numpy(targets), torch.from_numpy(root @ root.T), pull, ridge)

    made = [make_stage(documents[s], PULLS[s], RIDGES[s]) for s in range(stages)]
    return Problem(loss, made, make_stage(6, 0.0, 0.0), (outputs, inputs))


def agreement(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Slope of the regression of the scores on the truth, and their correlation."""
    slope = np.polyfit(truth.ravel(), scores.ravel(), 1)[0]
    return slope, np.corrcoef(scores.ravel(), truth.ravel())[0, 1]


def agrees(scores: np.ndarray, truth: np.ndarray) -> bool:
    slope, correlation = agreement(scores, truth)
    return abs(slope - 1) <= 0.01 and correlation > 0.999


PROBLEMS = {"logistic": (logistic, 1), "least_squares": (least_squares, 3)}
CHAINS = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


@pytest.fixture(scope="module", params=PROBLEMS)
def kind(request):
    return PROBLEMS[request.param]


@pytest.fixture(scope="module")
def two_stages(kind):
    problem = make_problem(*kind, stages=2)
    return problem, problem.retraining(0)


@pytest.fixture(scope="module")
def three_stages(kind):
    problem = make_problem(*kind, stages=3)
    return problem, problem.retraining(0)


@pytest.mark.parametrize(("stages", "stage"), CHAINS)
def test_the_engine_predicts_retraining(kind, stages, stage):
    problem = make_problem(*kind, stages=stages)
    scores, truth = problem.scores(problem.inverses(stage), stage), problem.retraining(stage)
    slope, correlation = agreement(scores, truth)
    assert slope == pytest.approx(1, abs=1e-4)
    assert correlation > 0.999999
    np.testing.assert_allclose(scores, problem.dense_scores(stage), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("stages", "stage"), CHAINS)
def test_the_formula_with_exact_hessians_predicts_retraining(stages, stage):
    """Softmax regression, whose curvature is no Kronecker product."""
    problem = make_problem(softmax, outputs=3, stages=stages)
    slope, correlation = agreement(problem.dense_scores(stage), problem.retraining(stage))
    assert slope == pytest.approx(1, abs=1e-4)
    assert correlation > 0.999999


def test_score_over_documents_predicts_removal():
    """Removing z takes 1/N of weight away, so a proponent's removal raises the query's loss."""
    problem = make_problem(logistic, outputs=1, stages=2, documents=(200, 30))
    scores = problem.scores(problem.inverses(0), 0)
    removed = problem.losses_after(0, -torch.eye(200, dtype=torch.float64) / 200)
    kept = problem.losses_after(0, torch.zeros(1, 200, dtype=torch.float64))
    slope, correlation = agreement(scores / 200, (removed - kept).numpy())
    assert slope == pytest.approx(1, abs=0.1)
    assert correlation > 0.99


@pytest.fixture(scope="module")
def removals():
    """Three stages, and by how much the queries' losses rise without each document of the first two."""
    problem = make_problem(logistic, outputs=1, stages=3, documents=(200, 120, 40))
    kept = problem.losses_after(0, torch.zeros(1, 200, dtype=torch.float64))
    removed = [problem.losses_after(s, -torch.eye(n, dtype=torch.float64) / n) for s, n in enumerate((200, 120))]
    return problem, [(losses - kept).numpy() for losses in removed]


def test_documents_of_two_stages_are_predicted_on_one_scale(removals):
    problem, rises = removals
    scores = {str(s): problem.scores(problem.inverses(s), s) for s in (0, 1)}
    slope, correlation = agreement(document_effects(scores), np.concatenate(rises))
    assert slope == pytest.approx(1, abs=0.1)
    assert correlation > 0.99
    slopes = [agreement(scores[str(s)] / len(scores[str(s)]), rises[s])[0] for s in (0, 1)]
    assert slopes == pytest.approx([1, 1], abs=0.1)


def test_without_alpha_the_stages_are_not_on_one_scale(removals):
    """Each stage alone is ranked as before, but the first one's documents count too much."""
    problem, rises = removals
    unscaled = [[replace(inverse, scale=1.0) for inverse in problem.inverses(s)] for s in (0, 1)]
    effects = [problem.scores(inverses, s) / len(rises[s]) for s, inverses in enumerate(unscaled)]
    slopes, correlations = zip(*(agreement(effects[s], rises[s]) for s in (0, 1)), strict=True)
    assert min(correlations) > 0.99
    assert slopes[0] / slopes[1] == pytest.approx(1 / PULLS[1], rel=0.1)


def transposed_left(inverse):
    q = inverse.basis.gradient
    return replace(inverse, basis=replace(inverse.basis, gradient={name: v.T for name, v in q.items()}))


def transposed_right(inverse):
    q = inverse.basis.activation
    return replace(inverse, basis=replace(inverse.basis, activation={name: v.T for name, v in q.items()}))


def doubled_damping(inverse):
    return replace(inverse, damping=Damping(absolute=2 * inverse.damping.absolute))


MISTAKES = {
    "the wrong order": lambda chain: chain[::-1],
    "no inverse of the last stage": lambda chain: chain[1:],
    "no inverse of the first stage": lambda chain: chain[:-1],
    "no α before the inverse": lambda chain: [replace(one, scale=1.0) for one in chain],
    "no α in the curvature": lambda chain: [replace(one, pull=0.0) for one in chain],
    "α in the first stage's curvature": lambda chain: [replace(one, pull=chain[0].pull) for one in chain],
    "no damping": lambda chain: [replace(one, damping=Damping(absolute=0.0)) for one in chain],
    "damping twice": lambda chain: [doubled_damping(one) for one in chain],
    "the right factor transposed": lambda chain: [transposed_right(one) for one in chain],
    "the first stage's curvature twice": lambda chain: [
        replace(chain[1], pull=one.pull, scale=one.scale) for one in chain
    ],
    "the wrong sign": lambda chain: [chain[0], replace(chain[1], scale=-1.0)],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_do_not_predict_retraining(two_stages, mistake):
    problem, truth = two_stages
    inverses = problem.inverses(0)
    assert agrees(problem.scores(inverses, 0), truth)
    assert not agrees(problem.scores(MISTAKES[mistake](inverses), 0), truth)


def test_a_transposed_left_factor_does_not_predict_retraining():
    problem = make_problem(least_squares, outputs=3, stages=2)
    inverses = [transposed_left(inverse) for inverse in problem.inverses(0)]
    assert not agrees(problem.scores(inverses, 0), problem.retraining(0))


def test_three_stages_need_every_inverse_in_its_place(three_stages):
    problem, truth = three_stages
    inverses = problem.inverses(0)
    assert agrees(problem.scores(inverses, 0), truth)
    for order in ([0, 2, 1], [1, 0, 2], [2, 1, 0], [0, 2], [1, 2], [0, 1]):
        assert not agrees(problem.scores([inverses[i] for i in order], 0), truth)


def test_the_inverses_of_commuting_curvatures_may_be_swapped():
    """The order shows only because the stages' curvatures have other eigenvectors."""
    problem = make_problem(least_squares, outputs=3, stages=2)
    first, _ = problem.stages
    same = Problem(least_squares, [first, replace(first, pull=0.2)], problem.queries, problem.shape)
    inverses = same.inverses(0)
    np.testing.assert_allclose(same.scores(inverses[::-1], 0), same.scores(inverses, 0), rtol=1e-8, atol=1e-12)
