"""Multi-stage scores of a tiny transformer equal those from explicitly formed Kronecker matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from chains import PULLS, Chain, contract, dense_curvature, dense_scores, relative_difference
from forebear.errors import ForebearError
from forebear.evaluation.damping_sweep import Grid, subset_gradients, sweep
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.kronecker import Eigenbasis
from forebear.queries.chain import apply_chain
from forebear.scores.pairwise import Request, pairwise_scores
from forebear.scores.self_influence import self_influence
from forebear.workflow.chain_points import inverse_points


@pytest.fixture(scope="module", params=[False, True], ids=["fused", "split_heads"])
def chain(request, models, stage_examples, queries):
    return Chain(models, stage_examples, queries, request.param)


@pytest.mark.parametrize(("stage", "last"), [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)])
def test_scores_equal_dense_kronecker_matrices(chain, stage, last):
    """Chains of one, two and three stages, for the documents of every stage."""
    expected = dense_scores(chain, stage, last)
    actual = chain.scores(chain.scaled(stage, last), stage, last)
    assert relative_difference(actual, expected) < 1e-10
    assert np.corrcoef(actual.ravel(), contract(chain.documents[stage], chain.queries[last]).ravel())[0, 1] < 0.99


@pytest.mark.parametrize("last", [1, 2])
def test_the_order_of_the_inverses_matters(chain, last):
    inverses = chain.scaled(0, last)
    expected = dense_scores(chain, 0, last)
    for i in range(last):
        swapped = [*inverses[:i], inverses[i + 1], inverses[i], *inverses[i + 2 :]]
        assert relative_difference(chain.scores(swapped, 0, last), expected) > 1e-2


@pytest.mark.parametrize("last", [1, 2])
def test_every_inverse_matters(chain, last):
    inverses = chain.scaled(0, last)
    expected = dense_scores(chain, 0, last)
    for left_out in range(last + 1):
        scores = chain.scores(inverses[:left_out] + inverses[left_out + 1 :], 0, last)
        assert abs(np.corrcoef(scores.ravel(), expected.ravel())[0, 1]) < 0.999


def test_self_influence_equals_dense_kronecker_matrices(chain):
    for stage, inverse in enumerate(chain.inverses):
        expected = torch.zeros(len(chain.examples[stage]), dtype=torch.float64)
        for block in chain.blocks:
            g = chain.documents[stage][block.name].flatten(1)
            expected += (g * torch.linalg.solve(dense_curvature(inverse, block), g.T).T).sum(1)
        actual = self_influence(chain.models[stage], chain.blocks, chain.examples[stage], inverse, batch_tokens=20)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


def test_the_pull_is_part_of_the_curvature_and_scales_the_inverse(chain):
    first, second = chain.inverses[:2]
    expected = dense_scores(chain, 0, 1)
    unscaled = chain.scores([second, first])
    assert relative_difference(second.pull * unscaled, expected) < 1e-10
    without_pull = chain.scores([replace(second, pull=0.0, scale=second.pull), first])
    assert relative_difference(without_pull, expected) > 1e-2
    stronger = chain.scores([replace(second, pull=0.6, scale=0.6), first])
    assert relative_difference(stronger, expected) > 1e-2


def test_an_infinite_pull_leaves_the_earlier_stage_alone(chain):
    """α H̃⁻¹ → 1 as α → ∞: the last model follows the one before wherever it goes."""
    first, second = chain.inverses[:2]
    scores = chain.scores([replace(second, pull=1e12, scale=1e12), first])
    assert relative_difference(scores, chain.scores([first])) < 1e-7


def test_a_vanishing_pull_cuts_the_chain(chain):
    """α H̃⁻¹ → 0 as α → 0: the last stage forgets the documents of the ones before."""
    first, second = chain.inverses[:2]
    scores = chain.scores([replace(second, pull=1e-12, scale=1e-12), first])
    assert np.linalg.norm(scores) < 1e-6 * np.linalg.norm(dense_scores(chain, 0, 1))


def test_huge_damping_leaves_the_gradient_dot_product(chain):
    damping = 1e12
    inverses = [replace(inverse, damping=Damping(absolute=damping)) for inverse in chain.scaled(0, 2)]
    scores = chain.scores(inverses, 0, 2) * damping**3 / (PULLS[1] * PULLS[2])
    assert relative_difference(scores, contract(chain.documents[0], chain.queries[2]).numpy()) < 1e-8


def test_a_chain_of_one_is_the_classical_influence_function(chain):
    """∇mᵀ (H + λ)⁻¹ ∇ℓ at one model, symmetric in its two gradients."""
    first = chain.inverses[0]
    assert relative_difference(chain.scores([first], 0, 0), dense_scores(chain, 0, 0)) < 1e-10
    among_documents = contract(chain.documents[0], apply_chain(chain.documents[0], chain.blocks, [first])).numpy()
    assert relative_difference(among_documents, among_documents.T) < 1e-10
    assert (np.diag(among_documents) > 0).all()


def test_no_inverses_leave_the_gradients_as_they_are(chain):
    columns = apply_chain(chain.queries[0], chain.blocks, [])
    assert all(torch.equal(columns[name], gradient) for name, gradient in chain.queries[0].items())


def test_preconditioning_is_bit_identical_and_leaves_its_inputs_alone(chain):
    before = {name: gradient.clone() for name, gradient in chain.queries[2].items()}
    eigenvalues = [{name: v.clone() for name, v in inverse.eigenvalues.items()} for inverse in chain.inverses]
    first, second = (apply_chain(chain.queries[2], chain.blocks, chain.scaled(0, 2)) for _ in range(2))
    for name in before:
        assert torch.equal(first[name], second[name])
        assert torch.equal(chain.queries[2][name], before[name])
        assert all(
            torch.equal(inverse.eigenvalues[name], e[name])
            for inverse, e in zip(chain.inverses, eigenvalues, strict=True)
        )


def test_a_block_without_factors_in_any_stage_is_an_error(chain):
    lost = chain.blocks[-1].name
    first, second = chain.inverses[:2]

    def without(inverse):
        basis = inverse.basis
        kept = {name: vectors for name, vectors in basis.gradient.items() if name != lost}
        cut = Eigenbasis(basis.activation, kept, basis.activation_values, basis.gradient_values)
        return replace(inverse, basis=cut)

    for inverses in ([without(second), first], [second, without(first)]):
        with pytest.raises(ForebearError, match=lost):
            chain.scores(inverses)
    no_eigenvalues = replace(first, eigenvalues={n: v for n, v in first.eigenvalues.items() if n != lost})
    with pytest.raises(ForebearError, match=lost):
        chain.scores([second, no_eigenvalues])


def test_inverses_are_applied_from_the_last_stage_to_the_documents():
    stages = ["pretraining", "middle", "finetuning"]
    assert inverse_points("multistage-ekfac", stages, "pretraining") == ["finetuning", "middle", "pretraining"]
    assert inverse_points("multistage-ekfac", stages, "middle") == ["finetuning", "middle"]
    assert inverse_points("finetune-ekfac", stages, "pretraining") == ["finetuning", "middle"]
    assert inverse_points("pretrain-ekfac", stages, "pretraining") == ["pretraining"]
    assert inverse_points("multistage-ekfac", ["only"], "only") == inverse_points("singlestage-ekfac", ["only"], "only")


def test_a_sweep_predicts_the_sums_of_each_settings_scores(chain):
    generator = np.random.default_rng(0)
    subsets = generator.random((4, len(chain.examples[0]))) < 0.5
    grid = Grid(alpha=[0.3, 2.0], later=[0.01, 1.0], own=[0.02, 0.5, 4.0])
    sums = subset_gradients(chain.models[0], chain.blocks, chain.examples[0], subsets, batch_tokens=20)
    own, *later = chain.inverses
    predictions = sweep(chain.queries[2], sums, chain.blocks, own, later[::-1], grid).numpy()
    for a, k, w in np.ndindex(grid.shape):
        tried = {"damping": Damping(relative=grid.later[k]), "pull": grid.alpha[a], "scale": grid.alpha[a]}
        inverses = [replace(inverse, **tried) for inverse in later[::-1]]
        inverses.append(replace(own, damping=Damping(relative=grid.own[w])))
        expected = subsets @ chain.scores(inverses, 0, 2)
        assert relative_difference(predictions[a, k, w], expected) < 1e-6  # predictions are kept in float32


def streamed(chain, columns, requests, batch_tokens=40, documents=None):
    """Estimator → scores [N, Q] as `pairwise_scores` writes them; NaN where it writes nothing."""
    shape = (len(chain.examples[0]), len(next(iter(chain.queries[1].values()))))
    scores = {estimator: np.full(shape, np.nan) for estimator in requests}

    def write(estimator, places, values):
        assert np.isnan(scores[estimator][places]).all()
        scores[estimator][places] = values

    seconds = pairwise_scores(
        chain.models[0], chain.blocks, chain.examples[0], columns, requests, batch_tokens, write, documents
    )
    assert seconds.keys() == requests.keys()
    return scores


@pytest.fixture(scope="module")
def columns(chain):
    return {
        "chain": apply_chain(chain.queries[1], chain.blocks, chain.scaled(0, 1)),
        "gradient": chain.queries[1],
    }


@pytest.fixture(scope="module")
def requests(chain):
    everything = frozenset(block.name for block in chain.blocks)
    mlp = frozenset(block.name for block in chain.blocks if block.kind == "mlp")
    return {
        "chain": Request("chain", everything),
        "chain-mlp": Request("chain", mlp),
        "dot": Request("gradient", everything),
        "cosine": Request("gradient", everything, cosine=True),
    }


@pytest.mark.parametrize("batch_tokens", [1, 25, 10_000])
def test_streamed_scores_equal_dense_ones_in_any_batches(chain, columns, requests, batch_tokens):
    scores = streamed(chain, columns, requests, batch_tokens)
    assert relative_difference(scores["chain"], dense_scores(chain, 0, 1)) < 1e-6
    documents, queries = (
        torch.cat([gradients[block.name].flatten(1) for block in chain.blocks], 1).numpy()
        for gradients in (chain.documents[0], chain.queries[1])
    )
    dots = documents @ queries.T
    assert relative_difference(scores["dot"], dots) < 1e-6
    lengths = np.linalg.norm(documents, axis=1)[:, None] * np.linalg.norm(queries, axis=1)
    assert relative_difference(scores["cosine"], dots / lengths) < 1e-6


def test_a_request_counts_its_own_blocks(chain, columns, requests):
    scores = streamed(chain, columns, requests)
    mlp = [block for block in chain.blocks if "/mlp/" in block.name]
    assert len(mlp) == 4
    expected = sum(
        chain.documents[0][block.name].flatten(1) @ columns["chain"][block.name].flatten(1).T for block in mlp
    ).numpy()
    assert relative_difference(scores["chain-mlp"], expected) < 1e-6
    assert relative_difference(scores["chain-mlp"], scores["chain"]) > 0.05


def test_only_chosen_documents_are_scored_and_they_keep_their_places(chain, columns, requests):
    everything = streamed(chain, columns, requests)
    chosen = np.array([1, 2, 5, 6, 7, 8])
    remaining = streamed(chain, columns, requests, documents=chosen)
    for estimator, scores in remaining.items():
        assert np.isnan(np.delete(scores, chosen, axis=0)).all()
        assert relative_difference(scores[chosen], everything[estimator][chosen]) < 1e-6
    nothing = streamed(chain, columns, requests, documents=[])
    assert all(np.isnan(scores).all() for scores in nothing.values())
