"""A classifier on a language model's base: the same chain, another head, loss and labels."""

import copy
from dataclasses import replace

import pytest
import torch

from chains import Chain, dense_scores, relative_difference
from conftest import block_gradient, fine_tuned, parameters_of, random_examples, tiny_model
from forebear.data.batches import IGNORED, batches, collate
from forebear.data.records import classes_of
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.capture import capture, sampled_labels
from forebear.gradients.outer_products import formed
from forebear.ground_truth.retrain import prepare_stage, retrain
from forebear.models.answers import answer_queries
from forebear.models.checkpoints import load_model
from forebear.models.heads import classes_by_label, position_logits, with_head
from forebear.models.losses import evaluate_losses
from forebear.models.training import Schedule, build_model, build_tokenizer, train
from forebear.queries.gradients import query_gradients

LABELS = ["early", "late", "middle"]
SCHEDULE = Schedule(epochs=40, batch_size=4, learning_rate=5e-3, weight_decay=0.0, warmup=0.1)
RECORDS = [
    {"id": str(i), "text": text, "label": label}
    for i, (text, label) in enumerate(
        [
            ("the king rides", "early"),
            ("a king rules", "early"),
            ("the jet flies", "late"),
            ("a jet lands here", "late"),
        ]
    )
]


def labelled(examples):
    return [
        replace(example, first_target=len(example.ids), label=k % len(LABELS)) for k, example in enumerate(examples)
    ]


@pytest.fixture(scope="module")
def classifier():
    """A classifier whose head is far from its initial value."""
    model = with_head(fine_tuned(tiny_model(seed=0), seed=1), "classification", LABELS, seed=0)
    with torch.no_grad():
        model.score.weight.mul_(40)
    return model


@pytest.fixture(scope="module")
def examples():
    return labelled(random_examples(3, lengths=[6, 2, 9, 5, 7, 3]))


def class_loss(model, example, label):
    """Cross-entropy of a class, by transformers' own choice of the last token."""
    return -model(example.ids[None]).logits[0].log_softmax(-1)[label]


def enumerated_gradients(model, blocks, example):
    """(p(c), block → gradient of −log p(c)) of every class c, by autograd."""
    parameters = parameters_of(model, blocks)
    probabilities = model(example.ids[None]).logits[0].softmax(-1).tolist()
    for label, probability in enumerate(probabilities):
        gradients = torch.autograd.grad(class_loss(model, example, label), list(parameters.values()))
        named = dict(zip(parameters, gradients, strict=True))
        yield (
            probability,
            {b.name: block_gradient(b, named[b.module, "weight"], named.get((b.module, "bias"))) for b in blocks},
        )


def test_a_new_head_keeps_the_base_and_is_seeded():
    model = tiny_model(seed=0)
    first, again, other = (with_head(model, "classification", LABELS, seed) for seed in (0, 0, 1))
    for name, value in model.base_model.state_dict().items():
        assert torch.equal(first.base_model.state_dict()[name], value)
    assert first.score.weight.shape == (3, 8)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    assert classes_by_label(first) == {"early": 0, "late": 1, "middle": 2}
    assert tracked_blocks(first) == tracked_blocks(model)  # by name, so the chain passes through
    assert with_head(model, "language_modelling", [], 0) is model
    assert with_head(first, "classification", LABELS, 5) is first


def test_heads_that_cannot_be_are_refused(classifier):
    with pytest.raises(ForebearError, match="cannot follow a classification"):
        with_head(classifier, "language_modelling", [], 0)
    with pytest.raises(ForebearError, match="the same labels"):
        with_head(classifier, "classification", ["early", "late"], 0)
    with pytest.raises(ForebearError, match="at least two labels"):
        with_head(tiny_model(seed=0), "classification", ["early"], 0)


def test_the_loss_is_that_of_the_class_at_the_last_token(classifier, examples):
    expected = torch.stack([class_loss(classifier, e, e.label) for e in examples]).detach()
    captured = capture(classifier, tracked_blocks(classifier), collate(examples, range(len(examples))))
    torch.testing.assert_close(captured.losses, expected)
    torch.testing.assert_close(evaluate_losses(classifier, examples), expected.float())


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_gradients_equal_autograd_one_sequence_at_a_time(classifier, examples, batch_tokens):
    blocks = tracked_blocks(classifier)
    gradients, _ = query_gradients(classifier, blocks, examples, batch_tokens)
    for k, example in enumerate(examples):
        _, expected = list(enumerated_gradients(classifier, blocks, example))[example.label]
        for block in blocks:
            assert expected[block.name].abs().max() > 1e-4
            torch.testing.assert_close(formed(gradients[block.name])[k], expected[block.name], rtol=1e-10, atol=1e-10)


def test_labels_are_drawn_from_the_classes_at_the_last_token_only(classifier):
    (example,) = labelled(random_examples(10, lengths=[5]))
    copies = [example] * 4000
    logits = position_logits(classifier, example.ids[None]).detach()
    batch = collate(copies, range(len(copies)))
    drawn = sampled_labels(copies, (5, 0))(logits.expand(len(copies), -1, -1), batch)
    assert (drawn[:, :-1] == IGNORED).all()
    frequencies = drawn[:, -1].bincount(minlength=3) / len(copies)
    torch.testing.assert_close(frequencies.double(), logits[0, -1].softmax(-1), rtol=0, atol=0.03)
    assert frequencies.max() < 0.95


def test_eigenvalues_are_those_of_all_labels_enumerated(classifier, examples):
    """Λ = E_z Σ_c p(c) (Q_Sᵀ ∇(−log p(c)) Q_A)²."""
    blocks = tracked_blocks(classifier)
    basis = compute_eigenbasis(fit_covariances(classifier, blocks, examples, 0, 40))
    fitted = fit_eigenvalues(classifier, blocks, examples, basis, 0, 40, label_samples=800)
    for block in blocks:
        q_s, q_a = basis.gradient[block.name], basis.activation[block.module]
        expected = sum(
            p * (q_s.T @ gradients[block.name] @ q_a).square()
            for example in examples
            for p, gradients in enumerated_gradients(classifier, blocks, example)
        ) / len(examples)
        assert relative_difference(fitted[block.name].numpy(), expected.numpy()) < 0.1


def test_covariances_count_every_token(classifier, examples):
    """The last position carries the loss here; a language model's has none."""
    block = tracked_blocks(classifier)[0]
    covariances = fit_covariances(classifier, [block], examples, 0, 40)
    captured = [capture(classifier, [block], collate(examples, [k])) for k in range(len(examples))]
    activations = torch.cat([c.activations[block.module][0] for c in captured])
    assert len(activations) == sum(len(e.ids) for e in examples)
    torch.testing.assert_close(covariances.activation[block.module], activations.T @ activations / len(activations))
    drawn = sampled_labels(examples, (0, 0, 0))
    gradients = [capture(classifier, [block], b, drawn).block(block)[1].flatten(0, 1) for b in batches(examples, 40)]
    squares = sum(g.T @ g for g in gradients)
    torch.testing.assert_close(covariances.gradient[block.name], squares / len(activations))


def test_a_chain_through_a_new_head_equals_dense_kronecker_matrices(model, stage_examples, classifier, examples):
    """Documents of the language model, queries and later curvature of the classifier."""
    chain = Chain([model, classifier], [stage_examples[0], examples], examples[:3], split_heads=False)
    assert relative_difference(chain.scores(chain.scaled(0, 1)), dense_scores(chain, 0, 1)) < 1e-10
    assert relative_difference(dense_scores(chain, 0, 0), dense_scores(chain, 0, 1)) > 0.1


@pytest.fixture(scope="module")
def language_model():
    tokenizer = build_tokenizer(RECORDS)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return tokenizer, build_model({"model_type": "gpt_neox", **shape}, tokenizer, seed=0)


def test_a_classifier_learns_is_saved_and_answers(language_model, tmp_path):
    tokenizer, model = language_model
    start = with_head(model, "classification", classes_of(RECORDS), seed=0)
    trained, record = train(start, encode(RECORDS, tokenizer, 16, classes=classes_by_label(start)), SCHEDULE, (0, 1))
    assert record.loss < 0.1 < record.loss_untrained
    trained.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    answers = answer_queries(loaded, tokenizer, RECORDS, 16)
    assert [answer["answer"] for answer in answers] == [record["label"] for record in RECORDS]
    assert all(answer["correct"] for answer in answers)
    swapped = [{**record, "label": "early" if record["label"] == "late" else "late"} for record in RECORDS]
    assert not any(answer["correct"] for answer in answer_queries(loaded, tokenizer, swapped, 16))


def test_retraining_replaces_the_head_as_training_does(language_model):
    tokenizer, model = language_model
    classes = {"early": 0, "late": 1}
    texts = [{"id": record["id"], "text": record["text"]} for record in RECORDS]
    stages = [
        prepare_stage(texts, tokenizer, 16, "language_modelling", SCHEDULE),
        prepare_stage(RECORDS, tokenizer, 16, "classification", SCHEDULE),
    ]
    queries = encode(RECORDS, tokenizer, 16, classes=classes)
    *_, (retrained, _) = retrain(model, stages, [None, None], seed=3)
    first, _ = train(copy.deepcopy(model), encode(texts, tokenizer, 16), SCHEDULE, (3, 0))
    second, _ = train(with_head(first, "classification", list(classes), 3), queries, SCHEDULE, (3, 1))
    assert torch.equal(evaluate_losses(retrained, queries), evaluate_losses(second, queries))


def test_a_label_that_the_classifier_does_not_know_is_named(language_model):
    with pytest.raises(ForebearError, match=r"record '3': its label is 'late'.*'early', 'middle'"):
        encode(RECORDS[3:], language_model[0], 16, classes={"early": 0, "middle": 1})
