"""LDS, ceiling and tracing against textbook values."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from forebear.evaluation.damping_table import sweep_table
from forebear.evaluation.lds import document_effects, mean_with_interval, noise_ceiling, rank_correlations
from forebear.evaluation.ranking import mean_reciprocal_rank, recall_at, relevant_indices
from forebear.evaluation.table import evaluate_estimator
from forebear.ground_truth.bank import Bank, draw_subsets, key_of_any_version, plan_retrainings, retraining_key
from forebear.ground_truth.files import read_shards, write_shard


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_rank_correlations_are_scipys(generator):
    predicted, measured = generator.normal(size=(12, 5)), generator.integers(0, 4, size=(12, 5))
    expected = [spearmanr(predicted[:, k], measured[:, k]).statistic for k in range(5)]
    np.testing.assert_allclose(rank_correlations(predicted, measured), expected)


def test_a_sweep_is_chosen_on_even_queries_and_reported_on_odd_ones(generator):
    grid = {"alpha": np.array([0.1]), "later": np.array([1.0, 2.0]), "own": np.array([3.0, 4.0, 5.0])}
    predictions, gain = generator.normal(size=(1, 2, 3, 12, 6)), generator.normal(size=(12, 6))
    table = sweep_table(predictions, grid, gain)
    row = table[(table["later"] == 2.0) & (table["own"] == 4.0)].iloc[0]
    values = [spearmanr(predictions[0, 1, 1, :, q], gain[:, q]).statistic for q in range(6)]
    np.testing.assert_allclose([row["lds_chosen"], row["lds_reported"]], [np.mean(values[::2]), np.mean(values[1::2])])


def test_a_perfect_linear_model_has_lds_one_and_its_negative_minus_one(generator):
    scores = generator.normal(size=(40, 6))
    subsets = draw_subsets({"only": 40}, 0.5, 15, seed=0)["only"]
    losses = -(subsets @ scores)  # documents with positive scores lower the loss
    bank = Bank(subsets, np.arange(15), np.zeros(15), losses)
    costs = [{"seconds": 2.0, "peak_bytes": 2**20}]
    overhead = [{"seconds": 3.0, "peak_bytes": 2**21}]
    row = evaluate_estimator({"only": scores}, bank, [[0]] * 6, costs, overhead, seed=0)
    assert row["lds"] == pytest.approx(1)
    assert (row["overhead_seconds"], row["scoring_seconds"], row["peak_mib"]) == (3.0, 2.0, 2.0)
    assert evaluate_estimator({"only": -scores}, bank, [[0]] * 6, costs, overhead, seed=0)["lds"] == pytest.approx(-1)


def test_stages_are_compared_on_one_scale(generator):
    """score/N predicts removal, so stages of other sizes need their scores divided by other numbers."""
    sizes = {"large": 60, "small": 12}
    effects = {stage: generator.normal(size=(number, 5)) for stage, number in sizes.items()}
    scores = {stage: effects[stage] * number for stage, number in sizes.items()}
    masks = draw_subsets(sizes, 0.5, 20, seed=0)
    losses = -sum(masks[stage] @ effects[stage] for stage in sizes)
    bank = Bank(np.concatenate(list(masks.values()), axis=1), np.arange(20), np.zeros(20), losses)
    np.testing.assert_allclose(document_effects(scores), np.concatenate(list(effects.values())))
    costs = [{"seconds": 1.0, "peak_bytes": 1}, {"seconds": 2.0, "peak_bytes": 2, "overhead_seconds": 4.0}]

    def evaluated(scores) -> dict:
        return evaluate_estimator(scores, bank, [[]] * 5, costs, [], seed=0)

    row = evaluated(scores)
    assert row["lds"] == pytest.approx(1)
    assert 0 < row["lds_small"] < row["lds_large"] < 1
    assert (row["overhead_seconds"], row["scoring_seconds"], row["pairs"]) == (4.0, 3.0, 72 * 5)
    assert evaluated({**scores, "large": scores["large"] / 5})["lds"] < 0.9


def test_subsets_are_halves_of_every_stage():
    masks = draw_subsets({"first": 21, "second": 8}, 0.5, 6, seed=3)
    assert {stage: set(mask.sum(1)) for stage, mask in masks.items()} == {"first": {10}, "second": {4}}
    assert np.array_equal(masks["first"], draw_subsets({"first": 21}, 0.5, 6, seed=3)["first"])


def test_sources_are_found_in_every_stage():
    documents = [{"id": "a"}, {"id": "b"}, {"id": "c"}, {"id": "a"}]
    assert relevant_indices(documents, [{"relevant": ["a", "lost"]}, {}]) == [[0, 3], []]


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
    few, many = (draw_subsets({"only": 21}, 0.5, number, seed=3)["only"] for number in (4, 9))
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


def test_shards_are_put_together_by_seed_and_subset(tmp_path):
    plan = plan_retrainings(4, 3, seed=0)
    for k in range(2):
        part = plan[k::2]
        write_shard(tmp_path / f"{k}.h5", part, [f"{r.subset}-{r.seed}" for r in part], {})
    keys = read_shards([tmp_path / "1.h5", tmp_path / "0.h5"])
    assert keys == {r: f"{r.subset}-{r.seed}" for r in plan}
    assert list(keys) == plan


def test_queries_without_scores_are_left_out(generator):
    """NaN columns change no number of the others, and the row says how many there were."""
    scores = generator.normal(size=(40, 6))
    subsets = draw_subsets({"only": 40}, 0.5, 15, seed=0)["only"]
    bank = Bank(subsets, np.arange(15), np.zeros(15), generator.normal(size=(15, 6)))
    cost = [{"seconds": 2.0, "peak_bytes": 2**20}]
    some = scores.copy()
    some[:, [1, 4]] = np.nan
    kept = [0, 2, 3, 5]
    row = evaluate_estimator({"only": some}, bank, [[k] for k in range(6)], cost, [], seed=0)
    alone = evaluate_estimator(
        {"only": scores[:, kept]}, bank.of_queries(np.array(kept)), [[k] for k in kept], cost, [], seed=0
    )
    assert row == alone
    assert (row["queries"], row["pairs"]) == (4, 160)


def test_a_retraining_of_another_version_is_another_and_can_be_accepted(tmp_path, monkeypatch):
    mask = np.array([True, False])
    new = retraining_key({"epochs": 2}, mask, 0)
    monkeypatch.setattr("forebear.ground_truth.bank.minor_versions", lambda: {"torch": "1.0", "transformers": "4.9"})
    old = retraining_key({"epochs": 2}, mask, 0)
    assert old.endswith("-torch-1.0-transformers-4.9")
    assert old != new
    assert key_of_any_version(tmp_path, new, "finetuning") == new
    finished = tmp_path / old / "finetuning/manifest.json"
    finished.parent.mkdir(parents=True)
    assert key_of_any_version(tmp_path, new, "finetuning") == new
    finished.touch()
    assert key_of_any_version(tmp_path, new, "finetuning") == old
    another = retraining_key({"epochs": 3}, mask, 0)
    assert key_of_any_version(tmp_path, another, "finetuning") == another
