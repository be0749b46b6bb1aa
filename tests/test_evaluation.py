"""LDS, ceiling and tracing against textbook values."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from forebear.bank import draw_subsets, plan_retrainings, retraining_key
from forebear.evaluation import (
    Bank,
    evaluate_estimator,
    mean_reciprocal_rank,
    mean_with_interval,
    noise_ceiling,
    rank_correlations,
    recall_at,
)


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_rank_correlations_are_scipys(generator):
    predicted, measured = generator.normal(size=(12, 5)), generator.integers(0, 4, size=(12, 5))
    expected = [spearmanr(predicted[:, k], measured[:, k]).statistic for k in range(5)]
    np.testing.assert_allclose(rank_correlations(predicted, measured), expected)


def test_a_perfect_linear_model_has_lds_one_and_its_negative_minus_one(generator):
    scores = generator.normal(size=(40, 6))
    subsets = draw_subsets(40, 0.5, 15, seed=0)
    losses = -(subsets @ scores)  # documents with positive scores lower the loss
    bank = Bank(subsets, np.arange(15), np.zeros(15), losses)
    cost = {"seconds": 2.0, "peak_bytes": 2**20}
    overhead = [{"seconds": 3.0, "peak_bytes": 2**21}]
    row = evaluate_estimator(scores, bank, [[0]] * 6, cost, overhead, seed=0)
    assert row["lds"] == pytest.approx(1)
    assert (row["overhead_seconds"], row["scoring_seconds"], row["peak_mib"]) == (3.0, 2.0, 2.0)
    assert evaluate_estimator(-scores, bank, [[0]] * 6, cost, overhead, seed=0)["lds"] == pytest.approx(-1)


def test_the_interval_covers_zero_for_random_scores(generator):
    value, low, high = mean_with_interval(generator.normal(size=(32, 50)), generator.normal(size=(32, 50)), seed=0)
    assert low < 0 < high
    assert low < value < high


def test_the_ceiling_compares_the_same_subsets(generator):
    losses = generator.normal(size=(5, 8))
    bank = Bank(
        np.ones((5, 3), bool),
        np.array([0, 1, 2, 3, 4, 0, 1, 2]),
        np.array([0, 0, 0, 0, 0, 1, 1, 1]),
        np.concatenate([losses, losses[:3] * 2]),
    )
    assert noise_ceiling(bank, seed=0)[0] == pytest.approx(1)


def test_tracing_measures():
    scores = np.array([[3.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 3.0]])
    relevant = [[1, 3], [3]]
    assert mean_reciprocal_rank(scores, relevant) == pytest.approx((1 / 2 + 1) / 2)
    assert recall_at(scores, relevant, k=2) == pytest.approx((1 / 2 + 1) / 2)
    assert recall_at(scores, [[], [3]], k=1) == 1  # a query without known sources is left out
    assert np.isnan(mean_reciprocal_rank(scores, [[], []]))


def test_constant_scores_are_not_lucky():
    assert mean_reciprocal_rank(np.zeros((9, 1)), [[0]]) == pytest.approx(1 / 5)


def test_more_subsets_keep_the_first_ones():
    few, many = draw_subsets(21, 0.5, 4, seed=3), draw_subsets(21, 0.5, 9, seed=3)
    assert np.array_equal(few, many[:4])
    assert (many.sum(1) == 10).all()
    assert set(plan_retrainings(4, 3, 0)) < set(plan_retrainings(9, 3, 0))


def test_a_retraining_is_named_by_all_that_it_depends_on():
    mask = np.array([True, False, True])
    key = retraining_key({"epochs": 2}, mask, 0)
    assert key == retraining_key({"epochs": 2}, mask.copy(), 0)
    assert (
        len(
            {
                key,
                retraining_key({"epochs": 3}, mask, 0),
                retraining_key({"epochs": 2}, ~mask, 0),
                retraining_key({"epochs": 2}, mask, 1),
            }
        )
        == 4
    )
