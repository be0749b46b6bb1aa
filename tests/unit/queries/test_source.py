"""SOURCE's functions against dense matrix functions, and against gradient descent that is really unrolled."""

import pytest
import torch

from forebear.factors.eigenvalue_functions import remaining, unrolled_inverse
from forebear.factors.kronecker import Eigenbasis
from forebear.gradients.blocks import Block
from forebear.queries.chain import SourceSegment, apply_chain, default_pull, training_time

BLOCK = Block("map", "map", "mlp", slice(0, 3), (3, 4), True)
PARAMETERS = 12


def segment(seed: int, time: float, later: bool) -> tuple[SourceSegment, torch.Tensor]:
    """A stage of random anisotropic curvature, and that curvature as a dense matrix."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator).double())[0] for n in BLOCK.shape)
    values = 10 ** (3 * torch.rand(BLOCK.shape, generator=generator).double() - 3)  # from 0.001 to 1
    rotation = torch.kron(left, right)
    basis = Eigenbasis({"map": right}, {"map": left}, {}, {})
    return SourceSegment(basis, {"map": values}, time, later), rotation @ torch.diag(values.flatten()) @ rotation.T


def vector(seed: int) -> torch.Tensor:
    return torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(seed)).double()


def unrolled(query: torch.Tensor, *segments: SourceSegment) -> torch.Tensor:
    return apply_chain({"map": query.view(1, 3, 4)}, [BLOCK], segments)["map"].flatten()


@pytest.mark.parametrize("time", [0.3, 50.0])
def test_a_chain_is_the_product_of_dense_matrix_functions(time):
    (third, h3), (second, h2), (first, h1) = segment(3, 2.0, True), segment(2, 0.5, True), segment(1, time, False)
    query, identity = vector(0), torch.eye(PARAMETERS, dtype=torch.float64)
    own = (identity - torch.matrix_exp(-time * h1)) @ torch.linalg.inv(h1)
    expected = query @ torch.matrix_exp(-2.0 * h3) @ torch.matrix_exp(-0.5 * h2) @ own
    torch.testing.assert_close(unrolled(query, third, second, first), expected)


def test_scores_predict_gradient_descent_through_two_stages():
    """Both stages are quadratics; a document's loss, linear here, is added to the first with weight ε."""
    steps, rates = (4000, 3000), (1e-3, 2e-3)
    (second, h2), (first, h1) = segment(2, rates[1] * steps[1], True), segment(1, rates[0] * steps[0], False)
    document, query, minima = vector(4), vector(5), (vector(6), vector(7))

    def measured(epsilon: float) -> torch.Tensor:
        parameters = vector(8)
        for _ in range(steps[0]):
            parameters = parameters - rates[0] * (h1 @ (parameters - minima[0]) + epsilon * document)
        for _ in range(steps[1]):
            parameters = parameters - rates[1] * (h2 @ (parameters - minima[1]))
        return query @ parameters

    effect = -(measured(0.5) - measured(-0.5))  # linear in ε
    torch.testing.assert_close(unrolled(query, second, first) @ document, effect, rtol=3e-3, atol=0)


def test_flat_directions_have_their_limits_without_rounding():
    values = torch.tensor([0.0, 1e-30, 1e-12, 1e-4, 1e8], dtype=torch.float64)
    expected = torch.tensor([7.0, 7.0, 7.0 * (1 - 3.5e-12), 7 - 49e-4 / 2 + 343e-8 / 6, 1e-8], dtype=torch.float64)
    torch.testing.assert_close(unrolled_inverse(values, 7.0), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(unrolled_inverse(values.float(), 7.0), expected.float(), rtol=1e-6, atol=0)
    assert remaining(values, 7.0)[0] == 1


def test_long_training_is_the_plain_inverse():
    values = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    torch.testing.assert_close(unrolled_inverse(values, 1e4), 1 / values)


def test_the_time_is_read_off_the_training_record():
    record = {"mean_learning_rate": 1e-3, "steps": 500, "adam_scale": 0.05}
    assert training_time(record, adam=False) == pytest.approx(0.5)
    assert training_time(record) == pytest.approx(10.0)
    assert default_pull(record) == pytest.approx(0.1)
