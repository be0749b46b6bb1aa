"""What a pass has finished outlives it, and nothing else is taken for it."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from forebear.artifacts.growing import Store
from forebear.errors import ForebearError
from forebear.gradients.blocks import Block
from forebear.queries.files import create_query_columns, read_query_columns
from forebear.scores.document_pass import alike
from forebear.scores.files import ScoreStore

MADE_FROM = {"model_digest": "a"}


def opened(path: Path, made_from: dict | None = None, documents: int = 4, keys: str = "xy") -> ScoreStore:
    return ScoreStore(path, "e", made_from or MADE_FROM, np.arange(documents), list(keys), list(keys))


def killed(store: ScoreStore) -> None:
    """End its job here."""
    store._store.file.close()


def done(store: ScoreStore) -> np.ndarray:
    """[n] bool: documents without a missing score."""
    return ~store.missing.any(1)


def test_an_interrupted_matrix_is_continued(tmp_path):
    path = tmp_path / "scores.h5"
    first = opened(path)
    first.write(np.array([2, 0]), np.array([[2.0, 2.0], [0.0, 0.0]]), "xy")
    killed(first)

    second = opened(path)
    assert done(second).tolist() == [True, False, True, False]
    with pytest.raises(ForebearError, match="scores are missing"):
        second.finished()
    second.write(np.array([1, 3]), np.array([[1.0, 1.0], [3.0, 3.0]]), "xy")
    assert second.finished()[:, 0].tolist() == [0, 1, 2, 3]
    assert not path.exists()  # which is for the job to write


def test_an_interrupted_matrix_of_another_model_is_not(tmp_path):
    first = opened(tmp_path / "s.h5")
    first.write(np.array([0]), np.ones((1, 2)), "xy")
    killed(first)
    assert not done(opened(tmp_path / "s.h5", {"model_digest": "b"})).any()


def test_a_damaged_unfinished_matrix_is_begun_again(tmp_path):
    store = tmp_path / ".store/s/e.h5"
    store.parent.mkdir(parents=True)
    store.write_bytes(b"not HDF5")
    assert not done(opened(tmp_path / "s.h5")).any()
    assert h5py.is_hdf5(store)


def test_a_finished_matrix_of_the_same_job_stays_and_of_another_does_not(tmp_path):
    path = tmp_path / "s.h5"
    first = opened(path)
    first.write(np.arange(4), np.ones((4, 2)), "xy")
    assert first.seal({"seconds": 1.0, "peak_bytes": 7.0}) == {"seconds": 1.0, "peak_bytes": 7.0}
    again = opened(path)
    assert done(again).all()
    assert again.seal({"seconds": 2.0, "peak_bytes": 9.0}) == {"seconds": 1.0, "peak_bytes": 7.0}
    assert not done(opened(path, {"model_digest": "b"})).any()


def test_a_finished_matrix_that_was_changed_by_hand_is_begun_again(tmp_path):
    first = opened(tmp_path / "s.h5")
    first.write(np.arange(4), np.ones((4, 2)), "xy")
    first.seal({"seconds": 1.0})
    with h5py.File(tmp_path / ".store/s/e.h5", "r+") as file:
        file["matrix"][0] = 7
    assert not done(opened(tmp_path / "s.h5")).any()


def test_what_is_written_stays(tmp_path):
    store = opened(tmp_path / "s.h5")
    store.write(np.array([1]), np.array([[1.0, 1.0]]), "xy")
    store.write(np.array([1, 2]), np.full((2, 2), 5.0), "xy")
    assert store.values[1:3].tolist() == [[1, 1], [5, 5]]


def test_a_query_that_comes_twice_is_one(tmp_path):
    store = opened(tmp_path / "s.h5", keys="xyx")
    store.write(np.arange(4), np.arange(12.0).reshape(4, 3), "xyx")
    found = store.finished()
    assert (found[:, 0] == found[:, 2]).all()
    blocks = [Block("a", "a", "mlp", slice(0, 2), (2, 3), False)]
    with create_query_columns(tmp_path / "q.h5", torch.arange(3), blocks, {"origin": "o"}, list("xyx")) as file:
        file.write("a", file.missing, torch.arange(3.0)[:, None, None].expand(3, 2, 3))
    columns = read_query_columns(tmp_path / "q.h5").of(blocks)["a"]
    assert torch.equal(columns[0], columns[2])
    assert columns[1, 0, 0] == 1


def test_a_store_without_a_query_that_is_asked_for_is_begun_anew(tmp_path):
    for keys, known in (("ab", 2), ("bc", 3), ("x", 1)):
        store = Store(tmp_path / "s.h5", "kind", MADE_FROM, list(keys))
        store.mark(slice(None), store.rows)
        store.seal({})
        with h5py.File(tmp_path / "s.h5") as file:
            assert len(file["keys"]) == known


def test_what_is_written_to_a_store_is_in_no_other_file(tmp_path):
    """Its output is another name of it, until more is added."""
    blocks, outputs = [Block("a", "a", "mlp", slice(0, 2), (2, 3), False)], []
    for keys in ("ab", "abc"):
        outputs.append(tmp_path / f"{keys}.h5")
        with create_query_columns(
            tmp_path / "q.h5", torch.zeros(len(keys)), blocks, {"origin": "o"}, list(keys)
        ) as file:
            file.write("a", file.missing, torch.ones(len(file.missing), 2, 3))
        assert (tmp_path / "q.h5").samefile(tmp_path / ".store/q.h5")
        (outputs[-1]).hardlink_to(tmp_path / "q.h5")
    assert [len(read_query_columns(path).keys) for path in outputs] == [2, 3]


def test_rows_that_lack_the_same_are_alike():
    missing = np.array([[1, 1], [0, 1], [0, 0], [1, 1], [0, 1]], bool)
    found = {tuple(rows): tuple(entries) for rows, entries in alike(missing)}
    assert found == {(0, 3): (0, 1), (1, 4): (1,)}
    assert list(alike(np.zeros((3, 2), bool))) == []
