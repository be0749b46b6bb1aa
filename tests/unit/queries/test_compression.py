"""Queries of low rank, in the metric of the documents' gradients: what is lost is what scores lose."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from conftest import random_examples
from forebear.factors.kronecker import Covariances, compute_eigenbasis
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.queries import compression
from forebear.queries.compression import FLOOR, Metric, compress, relative_residual
from forebear.queries.files import create_query_columns, read_query_columns
from forebear.scores.pairwise import Request, pairwise_scores
from random_matrices import low_rank, normal


@pytest.fixture(scope="module", params=[False, True], ids=["fused", "per head"])
def blocks(model, request):
    return tracked_blocks(model, split_heads=request.param)


def covariance(seed: int, size: int) -> torch.Tensor:
    """Anisotropic: eigenvalues over three orders of magnitude."""
    vectors = torch.linalg.qr(normal(seed, size, size)).Q
    return (vectors * torch.logspace(-3, 0, size, dtype=torch.float64)) @ vectors.T


def metric_of(s: torch.Tensor, a: torch.Tensor) -> Metric:
    block = Block("block", "map", "mlp", slice(0, len(s)), (len(s), len(a)), False)
    return Metric.of(block, compute_eigenbasis(Covariances({"map": a}, {"block": s})))


@pytest.fixture
def compressible():
    """(S, A, V [Q, O, I]) with the floor in S and A, as the metric has it."""
    s, a = covariance(1, 7), covariance(2, 5)
    matrices = torch.linalg.solve(s, normal(3, 4, 7, 5)) @ torch.linalg.inv(a)  # large where the documents are not
    floored = [m + FLOOR * m.diagonal().mean() * torch.eye(len(m), dtype=m.dtype) for m in (s, a)]
    return metric_of(s, a), *floored, matrices


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_what_is_lost_is_the_mean_square_of_the_scores_errors(compressible, rank):
    """vec(V − V_r)ᵀ (S ⊗ A) vec(V − V_r), dense, is the mean of ⟨G, V − V_r⟩² for gradients G with that second moment."""
    metric, s, a, matrices = compressible
    found = compress(matrices, metric, rank)
    moment = torch.kron(s, a)

    def mean_square(difference):
        return torch.einsum("qi,ij,qj->q", difference.flatten(1), moment, difference.flatten(1))

    lost = mean_square(matrices - found.products.formed())
    torch.testing.assert_close(found.lost, lost, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.whole, mean_square(matrices), rtol=1e-10, atol=0)
    torch.testing.assert_close(relative_residual(found.lost, found.whole), (lost / found.whole).sqrt())
    roots = [torch.from_numpy(np.real(sqrtm(m.numpy()))) for m in (s, a)]
    values = torch.linalg.svdvals(roots[0] @ matrices @ roots[1])
    torch.testing.assert_close(lost, values[:, rank:].square().sum(1), rtol=1e-8, atol=0)
    u, values, vt = torch.linalg.svd(matrices, full_matrices=False)
    plain = (u[..., :rank] * values[:, None, :rank]) @ vt[:, :rank]
    assert (mean_square(matrices - plain) > lost).all()


def test_of_full_rank_nothing_is_lost_and_scores_are_those_of_the_matrices(model, blocks):
    metrics = {b.name: metric_of(covariance(1, b.shape[0]), covariance(2, b.shape[1])) for b in blocks}
    matrices = {name: part.formed() for name, part in low_rank(blocks, 3, 20).items()}
    found = {name: compress(matrices[name], metrics[name], 100) for name in matrices}
    for block in blocks:
        assert found[block.name].products.left.shape == (3, min(block.shape), block.shape[0])
        assert (relative_residual(found[block.name].lost, found[block.name].whole) < 1e-12).all()
        torch.testing.assert_close(found[block.name].products.formed(), matrices[block.name], rtol=1e-9, atol=1e-9)
    names = frozenset(block.name for block in blocks)
    documents = random_examples(4, lengths=[7, 4, 9, 6, 8, 5, 3])
    columns = {"matrices": matrices, "compressed": {name: part.products for name, part in found.items()}}
    scores = {name: np.empty((len(documents), 3)) for name in columns}

    def write(name, places, values):
        scores[name][places] = values

    requests = {name: Request(name, names) for name in columns}
    pairwise_scores(model, blocks, documents, columns, requests, 20, write, factored=names)
    np.testing.assert_allclose(scores["compressed"], scores["matrices"], rtol=1e-6, atol=1e-6)


def test_large_matrices_are_decomposed_from_a_sketch_that_is_always_the_same(compressible, monkeypatch):
    s, a = covariance(4, 60), covariance(5, 40)
    metric, matrices = metric_of(s, a), normal(6, 3, 60, 40) @ covariance(7, 40)
    exact = compress(matrices, metric, 4)
    monkeypatch.setattr(compression, "EXACT_SIDE", 20)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    sketched = compress(matrices, metric, 4)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(6)
    again = compress(matrices, metric, 4)
    assert torch.equal(sketched.products.left, again.products.left)
    assert torch.equal(sketched.products.right, again.products.right)
    assert not torch.equal(sketched.products.left, exact.products.left)
    assert (sketched.lost >= exact.lost * (1 - 1e-9)).all()
    assert (sketched.lost < 1.05 * exact.lost).all()


def test_a_query_or_a_block_without_gradients_is_nothing(compressible):
    metric, _, _, matrices = compressible
    found = compress(0 * matrices, metric, 2)
    assert (found.products.formed() == 0).all()
    assert (relative_residual(found.lost, found.whole) == 0).all()
    found = compress(matrices, metric_of(torch.zeros(7, 7).double(), torch.zeros(5, 5).double()), 5)
    torch.testing.assert_close(found.products.formed(), matrices)


def test_compressed_queries_come_back_from_their_file(tmp_path, blocks):
    factors = low_rank(blocks, 4, 3)
    with create_query_columns(tmp_path / "c.h5", torch.zeros(4), blocks, {"origin": "o"}, list("abcd")) as file:
        for name, part in factors.items():
            for queries in (slice(0, 1), slice(1, 4)):
                file.write_part("left", name, queries, part[queries].left)
                file.write_part("right", name, queries, part[queries].right)
    stored = read_query_columns(tmp_path / "c.h5").columns
    for name, part in factors.items():
        assert torch.equal(stored[name][1:3].left, part.left[1:3])
        assert torch.equal(stored[name][1:3].right, part.right[1:3])
