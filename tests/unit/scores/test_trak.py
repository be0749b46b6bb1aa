"""TRAK against explicitly formed projections and gradients of the paper's output function."""

import numpy as np
import torch

from conftest import parameter_gradients, random_examples, tiny_model
from forebear.data.batches import collate
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.capture import capture
from forebear.scores.trak import (
    Member,
    ensemble_scores,
    error_probabilities,
    projected_gradients,
    projections,
    read_members,
    sequence_margins,
    write_members,
)

SIDE, SEED = 3, (0, 1)


def target_probabilities(model, example) -> torch.Tensor:
    """p of every target token, [targets], from one unpadded sequence."""
    places = range(example.first_target, len(example.ids))
    probabilities = model(example.ids[None]).logits[0].softmax(-1)
    return torch.stack([probabilities[t - 1, example.ids[t]] for t in places])


def output_function(model, example) -> torch.Tensor:
    p = target_probabilities(model, example)
    return (p / (1 - p)).log().sum()


def test_features_are_projections_of_the_output_functions_gradient(model, examples):
    """The whole projection is formed here: a block's part of P is P_g ⊗ P_a."""
    blocks = tracked_blocks(model)
    features = projected_gradients(model, blocks, examples, SIDE, SEED, batch_tokens=30)
    whole = torch.cat([torch.kron(*signs) for signs in projections(blocks, SIDE, SEED).values()])
    for example, feature in zip(examples, features, strict=True):
        gradients = parameter_gradients(model, blocks, output_function(model, example))
        flat = torch.cat([gradients[block.name].flatten() for block in blocks])
        torch.testing.assert_close(feature, whole.T @ flat)


def test_projections_keep_inner_products_on_average():
    blocks = tracked_blocks(tiny_model(0))[:2]
    u, v = torch.randn(2, sum(b.shape[0] * b.shape[1] for b in blocks), generator=torch.Generator().manual_seed(0))
    u, v = u.double(), (v + 0.5 * u).double()
    products = []
    for k in range(200):
        whole = torch.cat([torch.kron(*signs) for signs in projections(blocks, 4, (k,)).values()])
        products.append((u @ whole @ whole.T @ v).item())
    error = np.std(products) / len(products) ** 0.5
    assert abs(np.mean(products) - (u @ v).item()) < 3 * error


def test_errors_are_mean_probabilities_of_wrong_tokens(model, examples):
    errors = error_probabilities(model, examples, batch_tokens=30)
    expected = torch.stack([(1 - target_probabilities(model, example)).mean() for example in examples])
    torch.testing.assert_close(errors, expected)


def test_margins_keep_their_digits_where_the_model_is_sure():
    logits, labels = torch.tensor([[[40.0, 0.0, 0.0]]]), torch.tensor([[0]])
    torch.testing.assert_close(sequence_margins(logits, labels), torch.tensor([40 - np.log(2)], dtype=torch.float32))


def random_members(documents: int) -> list[Member]:
    generator = np.random.default_rng(0)
    shapes = [(documents, 4), (3, 4), (documents,)]
    return [Member(*(torch.from_numpy(generator.random(shape)) for shape in shapes)) for _ in range(2)]


def test_scores_are_the_papers_formula():
    members = random_members(documents=9)
    kernels = [
        [[x @ torch.linalg.inv(m.documents.T @ m.documents) @ z for x in m.queries] for z in m.documents]
        for m in members
    ]
    errors = np.mean([m.errors.numpy() for m in members], axis=0)
    np.testing.assert_allclose(ensemble_scores(members), errors[:, None] * np.mean(kernels, axis=0), rtol=1e-5)


def test_fewer_documents_than_features_interpolate():
    """Then the linear model explains every document by itself alone."""
    member = random_members(documents=3)[0]
    alone = Member(member.documents, member.documents, torch.ones(3))
    np.testing.assert_allclose(ensemble_scores([alone]), np.eye(3), atol=1e-6)


def test_a_document_speaks_for_a_query_like_itself(model):
    documents = random_examples(8, [6] * 12)
    blocks = tracked_blocks(model)
    features = projected_gradients(model, blocks, documents, SIDE, SEED, batch_tokens=100)
    scores = ensemble_scores([Member(features, features, error_probabilities(model, documents, 100))])
    assert (scores.diagonal() > 0).all()


def test_the_objective_is_what_capture_differentiates(model, examples):
    batch = collate(examples, [0, 1])
    captured = capture(model, tracked_blocks(model), batch, objective=sequence_margins)
    expected = torch.stack([output_function(model, examples[k]) for k in (0, 1)])
    torch.testing.assert_close(captured.losses, expected.detach())


def test_members_come_back(tmp_path):
    members = random_members(documents=5)
    write_members(tmp_path / "f.h5", members, {})
    for before, after in zip(members, read_members(tmp_path / "f.h5"), strict=True):
        assert all(torch.equal(getattr(before, name), getattr(after, name)) for name in vars(before))
