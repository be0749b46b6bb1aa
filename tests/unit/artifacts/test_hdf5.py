"""Artifacts appear whole or not at all, and one of something else is refused in a sentence."""

import numpy as np
import pytest
import torch

from forebear.artifacts.hdf5 import create, open_checked
from forebear.errors import ForebearError
from forebear.factors.files import create_factors, stored_covariances, stored_eigenbasis
from forebear.factors.kronecker import Covariances, compute_eigenbasis
from forebear.gradients.blocks import Block
from forebear.queries.files import create_query_columns, read_query_columns


@pytest.fixture
def covariances():
    return Covariances({"layers/0/mlp": torch.eye(3)}, {"layers/0/mlp": torch.ones(2, 2)})


def test_tensors_come_back_by_block(tmp_path, covariances):
    with create_factors(tmp_path / "c.h5", "covariances", {"model_digest": "a"}) as file:
        file.write(covariances)
    again = stored_covariances(tmp_path / "c.h5", {"model_digest": "a"})
    assert torch.equal(again.activation["layers/0/mlp"], torch.eye(3))
    assert torch.equal(again.gradient["layers/0/mlp"], torch.ones(2, 2))


def test_query_columns_bring_their_blocks(tmp_path):
    blocks = [Block("a/q0", "a", "attention", slice(2, 4), (2, 3), True)]
    with create_query_columns(tmp_path / "q.h5", torch.zeros(5), blocks, {"origin": "o"}, list("abcde")) as file:
        file.write("a/q0", slice(None), torch.ones(5, 2, 3))
    assert read_query_columns(tmp_path / "q.h5").blocks == blocks


def test_query_columns_are_written_and_read_in_parts(tmp_path):
    blocks = [Block(name, name, "mlp", slice(0, 2), (2, 3), False) for name in ("a", "b")]
    columns, losses = {name: torch.rand(5, 2, 3) for name in "ab"}, torch.zeros(5)
    with create_query_columns(tmp_path / "q.h5", losses, blocks, {"study": "s", "origin": "o"}, list("abcde")) as file:
        for places in (torch.tensor([0, 3, 4]), torch.tensor([1, 2])):
            for name, column in columns.items():
                file.write(name, places, column[places])
            losses[places] = places.float()
        file.note({"seconds": 2.0})
    again = read_query_columns(tmp_path / "q.h5", {"study": "s"})
    assert again.losses.tolist() == [0, 1, 2, 3, 4]
    assert again.attributes["seconds"] == 2
    assert torch.equal(again.of(blocks)["a"], columns["a"])
    part = again.of(blocks[1:], slice(1, 3))
    assert list(part) == ["b"]
    assert torch.equal(part["b"], columns["b"][1:3])


def test_stored_factors_are_read_when_they_are_asked_for(tmp_path, covariances):
    basis = compute_eigenbasis(covariances)
    with create_factors(tmp_path / "e.h5", "eigenbasis", {"model_digest": "a"}) as file:
        file.write(basis)
    stored = stored_eigenbasis(tmp_path / "e.h5", {"model_digest": "a"})
    assert list(stored.activation) == ["layers/0/mlp"]
    assert torch.equal(stored.gradient["layers/0/mlp"], basis.gradient["layers/0/mlp"])
    with pytest.raises(ForebearError, match="another model digest"):
        stored_eigenbasis(tmp_path / "e.h5", {"model_digest": "b"})


def test_factors_of_another_model_are_refused(tmp_path, covariances):
    with create_factors(tmp_path / "c.h5", "covariances", {"model_digest": "a"}) as file:
        file.write(covariances)
    with pytest.raises(ForebearError, match=r"c\.h5: was made with another model digest .* delete it"):
        stored_covariances(tmp_path / "c.h5", {"model_digest": "b"})


def test_a_file_cut_in_half_is_refused(tmp_path, covariances):
    path = tmp_path / "c.h5"
    with create_factors(path, "covariances", {}) as file:
        file.write(covariances)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ForebearError, match="damaged"):
        stored_covariances(path)


def test_a_file_of_another_kind_is_refused(tmp_path, covariances):
    with create_factors(tmp_path / "c.h5", "covariances", {}) as file:
        file.write(covariances)
    with (
        pytest.raises(ForebearError, match="holds covariances, not eigenbasis"),
        open_checked(tmp_path / "c.h5", "eigenbasis"),
    ):
        pass


def test_a_failed_writer_leaves_nothing(tmp_path):
    def fail_halfway():
        with create(tmp_path / "x.h5", "covariances", {}) as file:
            file["half"] = np.ones(3)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert list(tmp_path.iterdir()) == []
