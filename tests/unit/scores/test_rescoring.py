"""Scores that are computed again with whole queries: which, and that none is taken for one that it is not."""

from itertools import pairwise

import numpy as np
import pytest

from forebear.artifacts.growing import ResumableMatrix
from forebear.scores.files import read_exact, read_scores, write_scores
from forebear.scores.rescoring import outermost, rescore


def test_the_outermost_are_those_of_any_query_in_both_directions():
    scores = np.array([[5.0, 0.0], [4.0, 9.0], [3.0, 1.0], [2.0, 2.0], [1.0, -7.0]])
    assert outermost(scores, 1).tolist() == [0, 1, 4]
    assert outermost(scores[:, :1], 2).tolist() == [0, 1, 3, 4]
    assert outermost(np.column_stack([scores, np.full(5, np.nan)]), 1).tolist() == [0, 1, 4]
    assert outermost(scores, 10).tolist() == [0, 1, 2, 3, 4]


@pytest.fixture
def exact():
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(200, 3)) for name in ("a", "b")}


@pytest.fixture
def compressed(exact):
    generator = np.random.default_rng(1)
    return {name: scores + 0.3 * generator.normal(size=scores.shape) for name, scores in exact.items()}


def test_the_outermost_scores_are_exact_and_all_others_stay(exact, compressed):
    calls = []

    def score(documents):
        calls.append(documents)
        rows = np.isin(np.arange(200), documents)[:, None]
        return {name: np.where(rows, scores, np.nan) for name, scores in exact.items()}

    untouched = {name: scores.copy() for name, scores in compressed.items()}
    found = rescore(compressed, 4, score)
    last = calls[-1]
    assert len(calls) > 1  # the first ones were not all of them
    assert all(np.isin(before, after).all() for before, after in pairwise(calls))
    assert len(last) < 120
    for name in exact:
        assert np.isin(outermost(found[name], 4), last).all()
        assert (found[name][last] == exact[name][last]).all()
        others = np.setdiff1d(np.arange(200), last)
        assert (found[name][others] == compressed[name][others]).all()
        assert (compressed[name] == untouched[name]).all()


def test_nothing_is_scored_where_there_is_nothing(compressed):
    assert rescore({}, 4, lambda documents: pytest.fail("called")) == {}
    rows = []
    rescore(compressed, 1000, lambda documents: rows.append(documents) or compressed)
    assert [len(places) for places in rows] == [200]


def test_a_file_says_which_rows_are_exact(tmp_path, exact, compressed):
    path, attributes = tmp_path / "s.h5", {"estimator": "a"}
    matrix = ResumableMatrix(path, "scores", attributes, (200, 3))
    matrix.write(np.array([7, 3]), exact["a"][[7, 3]])
    assert np.flatnonzero(~np.isnan(matrix.values[:, 0])).tolist() == [3, 7]

    matrix._file["matrix"][:] = compressed["a"]
    matrix._file.close()  # killed while the rest was written
    again = ResumableMatrix(path, "scores", attributes, (200, 3))
    assert np.flatnonzero(again.written).tolist() == [3, 7]
    assert np.isnan(again.values[~again.written]).all()
    again.write(np.array([3, 7, 9]), exact["a"][[3, 7, 9]])
    again.finish({"seconds": 2.0}, rest=compressed["a"])
    scores, found = read_scores(path, attributes)
    assert found["seconds"] == 2.0
    rows = np.isin(np.arange(200), [3, 7, 9])
    assert (read_exact(path) == rows).all()
    np.testing.assert_array_equal(scores, np.where(rows[:, None], exact["a"], compressed["a"]).astype(np.float32))


def test_scores_are_exact_unless_a_file_says_otherwise(tmp_path, exact):
    write_scores(tmp_path / "s.h5", exact["a"], {})
    assert read_exact(tmp_path / "s.h5").all()
    write_scores(tmp_path / "t.h5", exact["a"], {}, exact=np.arange(200) > 50)
    assert read_exact(tmp_path / "t.h5").sum() == 149
