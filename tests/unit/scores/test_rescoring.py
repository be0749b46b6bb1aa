"""Scores that are computed again with whole queries: which, and that none is taken for one that it is not."""

from itertools import pairwise

import numpy as np
import pytest

from forebear.errors import ForebearError
from forebear.scores.files import ScoreStore, read_scores, write_scores
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
    found, rescored = rescore(compressed, 4, score)
    last = calls[-1]
    assert len(calls) > 1  # the first ones were not all of them
    assert all(np.isin(before, after).all() for before, after in pairwise(calls))
    assert len(last) < 120
    assert np.flatnonzero(rescored).tolist() == last.tolist()
    for name in exact:
        assert np.isin(outermost(found[name], 4), last).all()
        assert (found[name][last] == exact[name][last]).all()
        others = np.setdiff1d(np.arange(200), last)
        assert (found[name][others] == compressed[name][others]).all()
        assert (compressed[name] == untouched[name]).all()


def test_nothing_is_scored_where_there_is_nothing(compressed):
    assert rescore({}, 4, lambda documents: pytest.fail("called"))[0] == {}
    rows = []
    rescore(compressed, 1000, lambda documents: rows.append(documents) or compressed)
    assert [len(places) for places in rows] == [200]


def test_a_pass_over_some_documents_is_continued_and_its_file_says_which_are_exact(tmp_path, exact, compressed):
    path, made_from = tmp_path / "s.h5", ({"model_digest": "m"}, np.arange(200), list("xyz"), list("xyz"))
    store = ScoreStore(path, "a", *made_from)
    store.write(np.array([7, 3]), exact["a"][[7, 3]], "xyz")
    store._store.file.close()  # killed here
    again = ScoreStore(path, "a", *made_from)
    assert np.flatnonzero(~again.missing.any(1)).tolist() == [3, 7]
    assert np.flatnonzero(~np.isnan(again.values[:, 0])).tolist() == [3, 7]
    again.write(np.array([3, 7, 9]), exact["a"][[3, 7, 9]], "xyz")
    rows = np.isin(np.arange(200), [3, 7, 9])
    scores = np.where(rows[:, None], again.values, compressed["a"].astype(np.float32))
    write_scores(path, "a", scores, again.seal({"seconds": 2.0}), rows)
    found = read_scores(path, "a")
    assert found.attributes["seconds"] == 2.0
    assert (found.exact == rows).all()
    np.testing.assert_array_equal(found.matrix, np.where(rows[:, None], exact["a"], compressed["a"]).astype(np.float32))


def test_scores_are_exact_unless_a_file_says_otherwise(tmp_path, exact):
    write_scores(tmp_path / "s.h5", "a", exact["a"], {})
    assert read_scores(tmp_path / "s.h5", "a").exact.all()
    write_scores(tmp_path / "t.h5", "a", exact["a"], {}, exact=np.arange(200) > 50)
    assert read_scores(tmp_path / "t.h5", "a").exact.sum() == 149


def test_scores_of_another_estimator_are_refused(tmp_path, exact):
    write_scores(tmp_path / "s.h5", "a", exact["a"], {})
    with pytest.raises(ForebearError, match=r"s\.h5: has scores of a, not of b; delete it and run again: rm "):
        read_scores(tmp_path / "s.h5", "b")
