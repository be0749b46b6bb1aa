"""Gradients that were not formed: the same scores as the matrices give, in memory and from a file."""

import pytest
import torch

from conftest import parameter_gradients, random_examples, tiny_model, unpadded_loss
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.outer_products import OuterProducts, formed
from forebear.planning.partitions import Partition, by_map
from forebear.queries.chain import DampedInverse, SourceSegment, apply_chain
from forebear.queries.files import create_query_columns, read_query_columns
from forebear.queries.gradients import query_gradients, stream_query_gradients
from forebear.scores.pairwise import Request, pairwise_scores
from random_matrices import low_rank, normal


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
def inverse(model, blocks):
    examples = random_examples(6, lengths=[8, 5, 9, 6])
    basis = compute_eigenbasis(fit_covariances(model, blocks, examples, 0, 40))
    eigenvalues = fit_eigenvalues(model, blocks, examples, basis, 0, 40)
    return DampedInverse(basis, eigenvalues, Damping(relative=1e-3), pull=0.01, scale=0.5)


def matrices(gradients):
    return {name: formed(part) for name, part in gradients.items()}


def test_outer_products_are_summed_over_tokens():
    left, right = torch.randn(3, 4, 5).double(), torch.randn(3, 4, 2).double()
    expected = torch.stack([sum(torch.outer(g, a) for g, a in zip(*pair)) for pair in zip(left, right)])  # noqa: B905
    products = OuterProducts(left, right)
    torch.testing.assert_close(products.formed(), expected)
    torch.testing.assert_close(products[1:].formed(), expected[1:])
    torch.testing.assert_close(products[torch.tensor([0, 2])].formed(), expected[[0, 2]])


@pytest.mark.parametrize("inverses", [0, 1, 2])
def test_a_chain_gives_the_same_for_formed_gradients_and_others(model, blocks, queries, inverse, inverses):
    gradients, _ = query_gradients(model, blocks, queries, 20)
    ours, theirs = (apply_chain(part, blocks, [inverse] * inverses) for part in (gradients, matrices(gradients)))
    for block in blocks:
        torch.testing.assert_close(ours[block.name], theirs[block.name], rtol=1e-9, atol=1e-9)


def test_source_gives_the_same_for_formed_gradients_and_others(model, blocks, queries, inverse):
    gradients, _ = query_gradients(model, blocks, queries, 20)
    chain = [SourceSegment(inverse.basis, inverse.eigenvalues, 3.0, later) for later in (True, False)]
    ours, theirs = (apply_chain(part, blocks, chain) for part in (gradients, matrices(gradients)))
    for block in blocks:
        torch.testing.assert_close(ours[block.name], theirs[block.name], rtol=1e-9, atol=1e-9)


def test_a_file_holds_them_unformed_and_scores_are_the_same(tmp_path, model, blocks, queries):
    documents = random_examples(7, lengths=[6, 8, 5])
    losses = torch.zeros(len(queries), dtype=torch.float64)
    with create_query_columns(
        tmp_path / "raw.h5", losses, blocks, {"origin": "o"}, list(map(str, range(len(queries))))
    ) as file:
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


# Columns that stay factored: nothing is formed


@pytest.fixture(scope="module")
def documents():
    return random_examples(4, lengths=[7, 4, 9, 6, 8, 5, 3])


@pytest.fixture(scope="module")
def gradients(model, blocks, documents):
    """Block → [N, O, I], from differentiation with respect to the parameters, a document at a time."""
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    parts = [parameter_gradients(model, blocks, unpadded_loss(model, document)) for document in documents]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return {block.name: torch.stack([part[block.name] for part in parts]) for block in blocks}


def dense_scores(gradients, columns, names, cosine: bool = False):
    g = torch.cat([gradients[name].flatten(1) for name in names], 1)
    v = torch.cat([columns[name].flatten(1) for name in names], 1)
    if cosine:
        g, v = (x / x.norm(dim=1, keepdim=True) for x in (g, v))
    return g @ v.T


def scored(model, blocks, documents, columns, requests, **options):
    scores = {
        name: torch.full((len(documents), len(next(iter(columns[r.columns].values())))), torch.nan)
        for name, r in requests.items()
    }

    def write(name, places, values):
        scores[name][places] = torch.from_numpy(values)

    pairwise_scores(model, blocks, documents, columns, requests, write=write, **{"batch_tokens": 20, **options})
    return scores


PARTITIONS = {
    "one": lambda blocks: (),
    "maps and queries": lambda blocks: [Partition(maps, k, k + 2) for maps in by_map(blocks) for k in (0, 2)],
}


@pytest.mark.parametrize("partitions", PARTITIONS.values(), ids=PARTITIONS)
@pytest.mark.parametrize("pairs", [1, 1000, 1 << 21])
def test_factored_columns_give_the_dense_scores(model, blocks, documents, gradients, partitions, pairs, monkeypatch):
    monkeypatch.setattr("forebear.gradients.outer_products.PAIRS", pairs)
    factors = low_rank(blocks, 4, 3)
    matrices = {name: part.formed() for name, part in low_rank(blocks, 4, 5).items()}
    names = [block.name for block in blocks]
    mlp = [block.name for block in blocks if block.kind == "mlp"]
    requests = {
        "factored": Request("factors", frozenset(names)),
        "cosine": Request("factors", frozenset(mlp), cosine=True),
        "formed": Request("matrices", frozenset(mlp[1:])),  # so that most blocks' gradients are not formed
    }
    columns = {"factors": factors, "matrices": matrices}
    found = scored(model, blocks, documents, columns, requests, partitions=partitions(blocks), factored=names)
    formed = {name: part.formed() for name, part in factors.items()}
    expected = {
        "factored": dense_scores(gradients, formed, names),
        "cosine": dense_scores(gradients, formed, mlp, cosine=True),
        "formed": dense_scores(gradients, matrices, mlp[1:]),
    }
    for name, scores in expected.items():  # written in float32
        torch.testing.assert_close(found[name].double(), scores, rtol=2e-6, atol=1e-6 * scores.abs().max().item())


def test_products_and_norms_are_those_of_the_matrices():
    ours = OuterProducts(normal(0, 3, 4, 5), normal(1, 3, 4, 2))
    others = OuterProducts(normal(2, 6, 2, 5), normal(3, 6, 2, 2))
    expected = ours.formed().flatten(1) @ others.formed().flatten(1).T
    torch.testing.assert_close(ours.products(others), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.squared_norms(), ours.formed().square().sum((1, 2)), rtol=1e-12, atol=1e-12)


def test_raw_query_gradients_can_stay_as_they_are(model, blocks, documents, queries, gradients):
    raw, _ = query_gradients(model, blocks, queries, 40)
    names = [block.name for block in blocks]
    requests = {"dot": Request("raw", frozenset(names))}
    found = scored(model, blocks, documents, {"raw": raw}, requests, factored=names)["dot"]
    expected = dense_scores(gradients, {name: part.formed() for name, part in raw.items()}, names)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-6 * expected.abs().max().item())
