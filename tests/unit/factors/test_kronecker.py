"""Kronecker factors and Λ are those of explicit loops, and tend to the exact Gauss-Newton matrix's."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from conftest import VOCABULARY, fine_tuned, parameter_gradients, random_examples, tiny_model, unpadded_loss
from dense_gradients import sequence_gradients
from forebear.data.batches import IGNORED, batches, collate, number_of_positions
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import (
    Covariances,
    Eigenbasis,
    apply_in_eigenbasis,
    compute_eigenbasis,
    kfac_eigenvalues,
    precondition,
)
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.gradients.capture import capture, sampled_labels
from forebear.gradients.per_sequence import summed_squares
from forebear.queries.chain import DampedInverse


def assert_close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def all_close(actual, expected, tolerance=1e-10):
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], tolerance)


def relative_error(actual, expected):
    difference = sum((actual[name] - expected[name]).square().sum() for name in expected)
    return (difference / sum(value.square().sum() for value in expected.values())).sqrt().item()


def run(model, blocks, ids):
    """Logits [T, V] of one sequence, and the inputs and outputs of the blocks' maps, module → [T, ·]."""
    modules = dict.fromkeys(block.module for block in blocks)
    inputs, outputs = {}, {}

    def record(module):
        def hook(_, args, output):
            inputs[module], outputs[module] = args[0][0].detach(), output

        return hook

    handles = [model.get_submodule(m.replace("/", ".")).register_forward_hook(record(m)) for m in modules]
    logits = model(ids[None]).logits[0]
    for handle in handles:
        handle.remove()
    return logits, inputs, outputs


def with_bias(block, activation):
    return torch.cat([activation, activation.new_ones(1)]) if block.bias else activation


@pytest.fixture
def drawn(monkeypatch):
    """seed → sequence → the labels that a fit draws, as it draws them."""
    records = defaultdict(dict)

    def recording(examples, seed):
        draw = sampled_labels(examples, seed)

        def labels_of(logits, batch):
            labels = draw(logits, batch)
            for row, index in enumerate(batch.indices.tolist()):
                assert index not in records[tuple(seed)]
                records[tuple(seed)][index] = labels[row, : len(examples[index].ids)].clone()
            return labels

        return labels_of

    monkeypatch.setattr("forebear.factors.fit.sampled_labels", recording)
    return records


@pytest.fixture(scope="module")
def covariances(model, examples):
    return fit_covariances(model, tracked_blocks(model), examples, seed=0, batch_tokens=30)


@pytest.fixture(scope="module")
def basis(covariances):
    return compute_eigenbasis(covariances)


@pytest.mark.parametrize("split_heads", [False, True])
def test_covariances_equal_loops_over_positions(model, examples, drawn, split_heads):
    blocks = tracked_blocks(model, split_heads)
    fitted = fit_covariances(model, blocks, examples, seed=2, batch_tokens=20, label_samples=2)

    activation = {block.module: torch.zeros(block.shape[1], block.shape[1]).double() for block in blocks}
    gradient = {block.name: torch.zeros(block.shape[0], block.shape[0]).double() for block in blocks}
    assert len(drawn) == 2
    positions = 0
    for labels_of in drawn.values():
        assert labels_of.keys() == set(range(len(examples)))
        for index, labels in labels_of.items():
            ids = examples[index].ids
            logits, inputs, outputs = run(model, blocks, ids)
            log_probabilities = logits.log_softmax(-1)
            loss = -sum(log_probabilities[t, label] for t, label in enumerate(labels.tolist()) if label != IGNORED)
            output_gradients = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))
            for t in range(len(ids) - 1):
                positions += 1
                for module in {block.module: block for block in blocks}.values():
                    a = with_bias(module, inputs[module.module][t])
                    activation[module.module] += torch.outer(a, a)
                for block in blocks:
                    g = output_gradients[block.module][0, t, block.rows]
                    gradient[block.name] += torch.outer(g, g)
    assert positions == 2 * sum(len(example.ids) - 1 for example in examples) == 2 * number_of_positions(examples)
    all_close(fitted.activation, {module: total / positions for module, total in activation.items()})
    all_close(fitted.gradient, {block: total / positions for block, total in gradient.items()})


@pytest.mark.parametrize("split_heads", [False, True])
def test_eigenvalues_equal_loops_over_sequences(model, examples, drawn, split_heads):
    blocks = tracked_blocks(model, split_heads)
    basis = compute_eigenbasis(fit_covariances(model, blocks, examples, seed=2, batch_tokens=20))
    drawn.clear()
    fitted = fit_eigenvalues(model, blocks, examples, basis, seed=2, batch_tokens=20, label_samples=2)

    expected = {block.name: torch.zeros(block.shape).double() for block in blocks}
    assert len(drawn) == 2
    for labels_of in drawn.values():
        assert labels_of.keys() == set(range(len(examples)))
        for index, labels in labels_of.items():
            tokens = torch.cat([examples[index].ids[:1], labels[:-1]])
            gradients = parameter_gradients(model, blocks, unpadded_loss(model, examples[index], tokens))
            for block in blocks:
                left, right = basis.gradient[block.name], basis.activation[block.module]
                expected[block.name] += (left.T @ gradients[block.name] @ right) ** 2 / (2 * len(examples))
    all_close(fitted, expected)


def test_eigenvalues_are_fitted_on_fresh_labels(model, examples, basis, drawn):
    blocks = tracked_blocks(model)
    fit_covariances(model, blocks, examples, seed=2, batch_tokens=10_000, label_samples=2)
    fit_eigenvalues(model, blocks, examples, basis, seed=2, batch_tokens=10_000, label_samples=2)
    draws = [torch.cat([labels_of[i] for i in range(len(examples))]) for labels_of in drawn.values()]
    assert len(draws) == 4
    for i, one in enumerate(draws):
        assert not any(torch.equal(one, other) for other in draws[:i])


def test_factors_do_not_depend_on_the_batches(model, examples, covariances, basis):
    blocks = tracked_blocks(model)
    eigenvalues = fit_eigenvalues(model, blocks, examples, basis, seed=0, batch_tokens=30)
    assert len(batches(examples, 30)) > 1
    for batch_tokens in (1, 12, 10_000):
        again = fit_covariances(model, blocks, examples, seed=0, batch_tokens=batch_tokens)
        all_close(again.activation, covariances.activation)
        all_close(again.gradient, covariances.gradient)
        all_close(fit_eigenvalues(model, blocks, examples, basis, 0, batch_tokens), eigenvalues)


def test_fits_are_bit_identical(model, examples, covariances, basis):
    blocks = tracked_blocks(model)
    again = fit_covariances(model, blocks, examples, seed=0, batch_tokens=30)
    assert all(torch.equal(again.gradient[name], matrix) for name, matrix in covariances.gradient.items())
    first, second = (fit_eigenvalues(model, blocks, examples, basis, 0, batch_tokens=30) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_eigenbasis_is_orthonormal_and_reconstructs(covariances, basis):
    for matrices, vectors, values in [
        (covariances.activation, basis.activation, basis.activation_values),
        (covariances.gradient, basis.gradient, basis.gradient_values),
    ]:
        for name, matrix in matrices.items():
            q, w = vectors[name], values[name]
            assert_close(q.T @ q, torch.eye(len(q)).double())
            assert_close(q @ torch.diag(w) @ q.T, matrix)
            assert (w >= 0).all()
            assert (w.diff() >= 0).all()


def test_eigenbasis_refuses_values_that_are_not_finite():
    with pytest.raises(ForebearError, match="layer"):
        compute_eigenbasis(Covariances({"layer": torch.full((2, 2), torch.nan)}, {}))


def test_apply_in_eigenbasis_equals_the_dense_matrix():
    """Row-major vec: Q_S M Q_Aᵀ is (Q_S ⊗ Q_A) vec(M); neither factor is symmetric."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (3, 5))
    values = rng.uniform(0.1, 2.0, size=(3, 5))
    vectors = rng.normal(size=(4, 3, 5))
    q = np.kron(left, right)
    dense = q @ np.diag(values.ravel()) @ q.T
    expected = np.stack([(dense @ v.ravel()).reshape(3, 5) for v in vectors])
    arguments = [torch.from_numpy(array) for array in (vectors, left, right, values)]
    copies = [argument.clone() for argument in arguments]
    assert_close(apply_in_eigenbasis(*arguments), torch.from_numpy(expected), 1e-13)
    assert all(torch.equal(argument, copy) for argument, copy in zip(arguments, copies, strict=True))


@pytest.mark.parametrize("sequences_at_once", [1, 3, 100])
def test_summed_squares_equal_those_of_explicit_gradients(monkeypatch, sequences_at_once):
    generator = torch.Generator().manual_seed(0)
    g, a = (torch.randn(7, 5, width, generator=generator, dtype=torch.float64) for width in (4, 6))
    monkeypatch.setattr("forebear.gradients.per_sequence.CHUNK_ELEMENTS", sequences_at_once * 4 * 6)
    expected = sum(sum(torch.outer(g[b, t], a[b, t]) for t in range(5)) ** 2 for b in range(7))
    assert_close(summed_squares(g, a), expected, 1e-13)


def test_kfac_eigenvalues_are_the_diagonal_of_the_kronecker_product(model, examples, covariances, basis):
    blocks = tracked_blocks(model)
    positions_per_sequence = number_of_positions(examples) / len(examples)
    eigenvalues = kfac_eigenvalues(basis, blocks, positions_per_sequence)
    for block in blocks:
        product = np.kron(covariances.gradient[block.name], covariances.activation[block.module])
        q = np.kron(basis.gradient[block.name], basis.activation[block.module])
        diagonalised = q.T @ (positions_per_sequence * product) @ q
        assert_close(torch.from_numpy(diagonalised), torch.diag(eigenvalues[block.name].flatten()))


def test_kfac_and_ekfac_are_in_the_same_units():
    """With one position per sequence and one label, E[(Q_Sᵀ g aᵀ Q_A)²] sums to E[‖g‖²‖a‖²]."""
    model = tiny_model(seed=11, layers=1)
    blocks = tracked_blocks(model)
    examples = random_examples(12, lengths=[2] * 40)
    basis = compute_eigenbasis(fit_covariances(model, blocks, examples, 0, 1000, label_samples=20))
    ekfac = fit_eigenvalues(model, blocks, examples, basis, 0, 1000, label_samples=20)
    kfac = kfac_eigenvalues(basis, blocks, 1.0)
    for block in blocks:
        assert 0.6 < (ekfac[block.name].sum() / kfac[block.name].sum()).item() < 1.6


def softmax_curvature(logits):
    """Hessian of the cross-entropy in the logits, diag(p) − p pᵀ."""
    p = logits.detach().softmax(-1)
    return torch.diag(p) - torch.outer(p, p)


def exact_gradient_covariance(model, blocks, examples):
    """block → S [O, O]: Σ over target positions of Jᵀ (diag p − p pᵀ) J at every position of the output."""
    exact = {block.name: torch.zeros(block.shape[0], block.shape[0]).double() for block in blocks}
    for example in examples:
        logits, _, outputs = run(model, blocks, example.ids)
        for t in range(example.first_target - 1, len(example.ids) - 1):
            rows = [torch.autograd.grad(logit, list(outputs.values()), retain_graph=True) for logit in logits[t]]
            jacobian = {m: torch.stack([row[i][0] for row in rows]) for i, m in enumerate(outputs)}  # [V, T, O]
            for block in blocks:
                j = jacobian[block.module][..., block.rows]
                exact[block.name] += torch.einsum("vto,vw,wtp->op", j, softmax_curvature(logits[t]), j)
    return {name: total / number_of_positions(examples) for name, total in exact.items()}


def exact_eigenvalues(model, blocks, examples, basis):
    """block → diagonal of the mean loss's Gauss-Newton matrix in the eigenbasis, [O, I]."""
    exact = {block.name: torch.zeros(block.shape).double() for block in blocks}
    for example in examples:
        logits = model(example.ids[None]).logits[0]
        for t in range(example.first_target - 1, len(example.ids) - 1):
            rows = [parameter_gradients(model, blocks, logit) for logit in logits[t]]
            for block in blocks:
                left, right = basis.gradient[block.name], basis.activation[block.module]
                j = torch.stack([left.T @ row[block.name] @ right for row in rows])
                exact[block.name] += torch.einsum("voi,vw,woi->oi", j, softmax_curvature(logits[t]), j)
    return {name: total / len(examples) for name, total in exact.items()}


@pytest.fixture(scope="module")
def small():
    """A one-layer model and sequences short enough to differentiate every logit; one has a prompt."""
    model = tiny_model(seed=13, layers=1)
    blocks = tracked_blocks(model, split_heads=True)
    examples = random_examples(14, lengths=[3, 5, 2, 4], prompts=[1, 3])
    basis = compute_eigenbasis(fit_covariances(model, blocks, examples, seed=0, batch_tokens=100))
    return model, blocks, examples, basis


def test_enumerated_labels_give_the_exact_gauss_newton_diagonal(small):
    """With one target, Σ_y p(y) (Q_Sᵀ G_y Q_A)² over the vocabulary is the Gauss-Newton diagonal."""
    model, blocks, _, basis = small
    examples = random_examples(15, lengths=[2, 5], prompts=[1, 4])
    expected = exact_eigenvalues(model, blocks, examples, basis)
    total = {block.name: torch.zeros(block.shape).double() for block in blocks}
    for index, example in enumerate(examples):
        batch = collate(examples, [index])
        probabilities = model(example.ids[None]).logits[0, -2].detach().softmax(-1)
        for y in range(VOCABULARY):
            captured = capture(model, blocks, batch, lambda _, b, y=y: torch.where(b.labels == IGNORED, IGNORED, y))
            for block in blocks:
                left, right = basis.gradient[block.name], basis.activation[block.module]
                rotated = left.T @ sequence_gradients(captured, block)[0] @ right
                total[block.name] += probabilities[y] * rotated**2 / len(examples)
    all_close(total, expected)


def assert_converges(fit, exact):
    """The error of `fit(seed, label_samples)`, its median over seeds, falls as one over the root of the samples."""
    samples = [2, 20, 100]
    errors = [np.median([relative_error(fit(seed, n), exact) for seed in range(6)]) for n in samples]
    assert errors[-1] < 0.1
    assert -0.65 < np.polyfit(np.log(samples), np.log(errors), 1)[0] < -0.35


def test_sampled_covariances_tend_to_the_exact_ones(small):
    model, blocks, examples, _ = small
    exact = exact_gradient_covariance(model, blocks, examples)
    assert_converges(lambda seed, n: fit_covariances(model, blocks, examples, seed, 100, n).gradient, exact)


def test_sampled_eigenvalues_tend_to_the_exact_gauss_newton_diagonal(small):
    model, blocks, examples, basis = small
    exact = exact_eigenvalues(model, blocks, examples, basis)
    assert_converges(lambda seed, n: fit_eigenvalues(model, blocks, examples, basis, seed, 100, n), exact)


def test_observed_labels_do_not_give_the_gauss_newton_diagonal(small, monkeypatch):
    """The empirical Fisher is another matrix: the two tests above can tell."""
    model, blocks, examples, basis = small
    exact = exact_eigenvalues(model, blocks, examples, basis)
    monkeypatch.setattr("forebear.factors.fit.sampled_labels", lambda *_: lambda _, batch: batch.labels)
    assert relative_error(fit_eigenvalues(model, blocks, examples, basis, 0, 100), exact) > 0.3


@pytest.mark.parametrize("damping", [Damping(relative=0.1), Damping(absolute=0.01)])
def test_inverting_never_writes_into_eigenvalues(model, examples, basis, damping):
    blocks = tracked_blocks(model)
    eigenvalues = fit_eigenvalues(model, blocks, examples, basis, seed=0, batch_tokens=100)
    before = {name: value.clone() for name, value in eigenvalues.items()}
    inverse = DampedInverse(basis, eigenvalues, damping, pull=0.2, scale=0.2)
    generator = torch.Generator().manual_seed(0)
    vectors = {b.name: torch.randn(2, *b.shape, generator=generator, dtype=torch.float64) for b in blocks}
    untouched = {name: value.clone() for name, value in vectors.items()}
    (first, _), (second, _) = (inverse.apply(vectors, blocks) for _ in range(2))
    for name in eigenvalues:
        assert torch.equal(first[name], second[name])
        assert torch.equal(eigenvalues[name], before[name])
        assert torch.equal(vectors[name], untouched[name])


def test_damping_is_relative_to_the_blocks_own_mean_eigenvalue(basis):
    eigenvalues = {"one": torch.tensor([[1.0, 3.0]]).double(), "two": torch.tensor([[10.0, 30.0]]).double()}
    blocks = [Block(name, name, "mlp", slice(0, 1), (1, 2), False) for name in eigenvalues]
    functions = DampedInverse(basis, eigenvalues, Damping(relative=0.5), pull=4.0, scale=6.0).functions(blocks)
    assert_close(functions["one"], 6 / torch.tensor([[1 + 1 + 4, 3 + 1 + 4]]).double())
    assert_close(functions["two"], 6 / torch.tensor([[10 + 10 + 4, 30 + 10 + 4]]).double())
    functions = DampedInverse(basis, eigenvalues, Damping(absolute=0.5)).functions(blocks[1:])
    assert list(functions) == ["two"]
    assert_close(functions["two"], 1 / torch.tensor([[10.5, 30.5]]).double())


@pytest.mark.parametrize("missing", ["eigenvalues", "gradient", "activation"])
def test_a_block_without_factors_is_an_error(model, basis, missing):
    blocks = tracked_blocks(model)
    lost = blocks[2]
    functions = {b.name: torch.ones(b.shape).double() for b in blocks if missing != "eigenvalues" or b != lost}
    incomplete = Eigenbasis(
        {m: q for m, q in basis.activation.items() if missing != "activation" or m != lost.module},
        {n: q for n, q in basis.gradient.items() if missing != "gradient" or n != lost.name},
        basis.activation_values,
        basis.gradient_values,
    )
    vectors = {block.name: torch.ones(1, *block.shape).double() for block in blocks}
    with pytest.raises(ForebearError, match=lost.name):
        precondition(vectors, blocks, incomplete, functions)


def test_factors_belong_to_the_model_they_are_fitted_on(model, examples, covariances):
    other = fit_covariances(fine_tuned(model, seed=16), tracked_blocks(model), examples, seed=0, batch_tokens=30)
    assert relative_error(other.gradient, covariances.gradient) > 0.05
