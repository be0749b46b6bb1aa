"""Training really trains, subsets keep the order of the whole, and bad losses name documents."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from forebear.data.corpora.facts import build_facts
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.ground_truth.retrain import RetrainedStage, retrain
from forebear.models.answers import answer_queries
from forebear.models.losses import evaluate_losses
from forebear.models.training import Schedule, _micro_batches, _steps, build_model, build_tokenizer, train
from forebear.queries.chain import default_pull

MODEL = {
    "model_type": "gpt_neox",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
SCHEDULE = Schedule(epochs=3, batch_size=8, learning_rate=5e-3, weight_decay=0.01, warmup=0.1)


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[dict]]:
    return build_facts(countries=6, query_countries=2, glosses=True)


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return build_tokenizer([record for records in corpus.values() for record in records])


@pytest.fixture(scope="module")
def examples(corpus, tokenizer):
    return encode(corpus["pretraining"], tokenizer, 32)


def test_training_lowers_the_loss_and_leaves_the_initial_model_alone(examples, tokenizer):
    model = build_model(MODEL, tokenizer, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained, record = train(model, examples, SCHEDULE, (0, 0))
    assert record.loss < record.loss_untrained - 1
    assert record.steps == 3 * -(-len(examples) // 8)
    assert 0 < record.mean_learning_rate < SCHEDULE.learning_rate
    assert default_pull(vars(record)) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert evaluate_losses(trained, examples).mean().item() == pytest.approx(record.loss)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_a_few_steps_are_a_schedule_too(examples, tokenizer, steps: int, warmup: float):
    schedule = replace(SCHEDULE, epochs=steps, batch_size=len(examples), warmup=warmup)
    _, record = train(build_model(MODEL, tokenizer, seed=0), examples, schedule, (0, 0))
    assert record.steps == steps
    assert record.loss < record.loss_untrained
    assert SCHEDULE.learning_rate / 10 < record.mean_learning_rate <= SCHEDULE.learning_rate


def test_a_warmup_of_one_step_is_where_longer_ones_lead(examples, tokenizer):
    rates = [
        train(build_model(MODEL, tokenizer, seed=0), examples[:8], replace(SCHEDULE, epochs=10, warmup=warmup), (0, 0))[
            1
        ].mean_learning_rate
        for warmup in (0.1 - 1e-5, 0.1)
    ]
    assert rates[0] == pytest.approx(rates[1], rel=1e-3)


def test_training_is_bit_identical(examples, tokenizer):
    losses = [
        evaluate_losses(train(build_model(MODEL, tokenizer, 0), examples, SCHEDULE, (0, 0))[0], examples)
        for _ in range(2)
    ]
    assert torch.equal(*losses)


def test_a_subset_is_visited_in_the_order_of_the_whole():
    whole = np.concatenate(_steps(10, np.arange(10), 4, 2, (0, 0)))
    chosen = np.array([1, 4, 5, 8])
    assert np.concatenate(_steps(10, chosen, 4, 2, (0, 0))).tolist() == [i for i in whole if i in chosen]


def test_micro_batches_are_the_step(examples):
    step = np.array([3, 9, 1, 7, 5])
    parts = _micro_batches(examples, step)
    assert sorted(i for part in parts for i in part.indices.tolist()) == sorted(step)


def test_retraining_on_everything_is_the_training(examples, tokenizer):
    model = build_model(MODEL, tokenizer, 0)
    everything = np.ones(len(examples), bool)
    trained, _ = train(model, examples, SCHEDULE, (0, 0))
    [(retrained, _)] = retrain(model, [RetrainedStage(examples, SCHEDULE)], [everything], 0)
    assert all(map(torch.equal, retrained.parameters(), trained.parameters()))


def test_a_loss_that_is_not_finite_names_the_documents(examples, tokenizer):
    model = build_model(MODEL, tokenizer, 0)
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = torch.nan
    with pytest.raises(ForebearError, match=r"the loss is nan on the documents \d+, "):
        train(model, examples, SCHEDULE, (0, 0))


def test_an_unknown_architecture_is_one_sentence(tokenizer):
    with pytest.raises(ForebearError, match="model_type 'gpt_neax'"):
        build_model({"model_type": "gpt_neax"}, tokenizer, 0)


def test_answers_are_judged_by_exact_match(corpus, tokenizer):
    pairs = corpus["finetuning"][:4]
    examples = encode(pairs, tokenizer, 32)
    schedule = Schedule(epochs=80, batch_size=4, learning_rate=1e-2, weight_decay=0.0, warmup=0.1)
    memorised, _ = train(build_model(MODEL, tokenizer, 0), examples, schedule, (0, 0))
    answers = answer_queries(memorised, tokenizer, pairs, 32)
    assert all(answer["correct"] for answer in answers)
    wrong = [{**pair, "completion": "Paris"} for pair in pairs]
    assert not any(answer["correct"] for answer in answer_queries(memorised, tokenizer, wrong, 32))
