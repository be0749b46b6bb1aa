"""Gradients that were not formed: the same scores as the matrices give, in memory and from a file."""

import pytest
import torch

from conftest import random_examples, tiny_model
from forebear.blocks import tracked_blocks
from forebear.chain import Curvature, Segment, precondition_chain, unroll_chain
from forebear.factors import fit_covariances, fit_eigenvalues
from forebear.kronecker import Damping, compute_eigenbasis
from forebear.outer import OuterProducts, formed
from forebear.query_files import create_query_columns, read_query_columns
from forebear.scoring import Request, pairwise_scores, query_gradients, stream_query_gradients


@pytest.fixture(scope="module")
def model():
    return tiny_model(0)


@pytest.fixture(scope="module", params=[False, True])
def blocks(model, request):
    return tracked_blocks(model, split_heads=request.param)


@pytest.fixture(scope="module")
def queries():
    return random_examples(5, lengths=[4, 9, 6, 3, 7], prompts=[2, 5, 4, 1, 6])


@pytest.fixture(scope="module")
def curvature(model, blocks):
    examples = random_examples(6, lengths=[8, 5, 9, 6])
    basis = compute_eigenbasis(fit_covariances(model, blocks, examples, 0, 40))
    return Curvature(basis, fit_eigenvalues(model, blocks, examples, basis, 0, 40), Damping(relative=1e-3), pull=0.01)


def matrices(gradients):
    return {name: formed(part) for name, part in gradients.items()}


def test_outer_products_are_summed_over_tokens():
    left, right = torch.randn(3, 4, 5).double(), torch.randn(3, 4, 2).double()
    expected = torch.stack([sum(torch.outer(g, a) for g, a in zip(*pair)) for pair in zip(left, right)])  # noqa: B905
    products = OuterProducts(left, right)
    torch.testing.assert_close(products.formed(), expected)
    torch.testing.assert_close(products[1:].formed(), expected[1:])
    torch.testing.assert_close(products[torch.tensor([0, 2])].formed(), expected[[0, 2]])


@pytest.mark.parametrize("links", [0, 1, 2])
def test_a_chain_gives_the_same_for_formed_gradients_and_others(model, blocks, queries, curvature, links):
    gradients, _ = query_gradients(model, blocks, queries, 20)
    chain = [(curvature, 0.5)] * links
    ours = precondition_chain(gradients, blocks, chain)
    theirs = precondition_chain(matrices(gradients), blocks, chain)
    for block in blocks:
        torch.testing.assert_close(ours[block.name], theirs[block.name], rtol=1e-9, atol=1e-9)


def test_source_gives_the_same_for_formed_gradients_and_others(model, blocks, queries, curvature):
    gradients, _ = query_gradients(model, blocks, queries, 20)
    chain = [Segment(curvature.basis, curvature.eigenvalues, 3.0, later) for later in (True, False)]
    ours, theirs = (unroll_chain(part, blocks, chain) for part in (gradients, matrices(gradients)))
    for block in blocks:
        torch.testing.assert_close(ours[block.name], theirs[block.name], rtol=1e-9, atol=1e-9)


def test_a_file_holds_them_unformed_and_scores_are_the_same(tmp_path, model, blocks, queries):
    documents = random_examples(7, lengths=[6, 8, 5])
    losses = torch.zeros(len(queries), dtype=torch.float64)
    with create_query_columns(tmp_path / "raw.h5", losses, blocks, {}) as file:
        losses[:] = stream_query_gradients(model, blocks, queries, 20, file.write_part)
    stored = read_query_columns(tmp_path / "raw.h5")
    gradients, expected_losses = query_gradients(model, blocks, queries, 1000)
    torch.testing.assert_close(stored.losses, expected_losses)
    for block in blocks:
        assert isinstance(stored.columns[block.name], OuterProducts)
        found = stored.of(blocks, slice(1, 4))[block.name]
        torch.testing.assert_close(found.formed(), gradients[block.name].formed()[1:4])

    def scores(columns):
        rows = torch.empty(len(documents), len(queries))
        request = {"dot": Request("raw", frozenset(block.name for block in blocks))}

        def write(_, places, values):
            rows[places] = torch.from_numpy(values)

        pairwise_scores(model, blocks, documents, {"raw": columns}, request, 30, write)
        return rows

    assert torch.equal(scores(stored.columns), scores(matrices(stored.of(blocks))))
