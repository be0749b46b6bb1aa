"""The scores of one chain of an ensemble against dense curvatures and gradients, and the mean of several chains'."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from chains import DAMPINGS, PULLS, dense_curvature
from conftest import parameter_gradients, unpadded_loss
from forebear.data.corpora.facts import build_facts
from forebear.data.records import write_records
from forebear.data.sequences import encode
from forebear.factors.eigenvalue_functions import Damping
from forebear.gradients.blocks import tracked_blocks
from forebear.ground_truth.retrain import prepare_stage, retrain
from forebear.models.checkpoints import save_checkpoint
from forebear.models.training import Schedule, build_model, build_tokenizer
from forebear.queries.chain import default_pull
from forebear.scores.ensemble import (
    Chain,
    ChainStage,
    FactorOptions,
    chain_scores,
    fit_inverse,
    mean_scores,
    open_chain,
)

OPTIONS = FactorOptions(seed=3, batch_tokens=40, label_samples=2)


@pytest.mark.parametrize("first", [0, 1])
def test_a_chains_scores_equal_dense_kronecker_matrices(models, stage_examples, queries, first):
    """Documents of the first stage of three and of the second, whose own curvature has a pull too."""
    blocks = tracked_blocks(models[0])
    stages = [ChainStage(*parts) for parts in zip(models, stage_examples, DAMPINGS, PULLS, strict=True)][first:]
    actual, seconds = chain_scores(Chain(stages, queries, blocks), OPTIONS)
    documents = [
        parameter_gradients(models[first], blocks, unpadded_loss(models[first], z)) for z in stages[0].examples
    ]
    measured = [parameter_gradients(models[-1], blocks, unpadded_loss(models[-1], x)) for x in queries]
    inverses = [fit_inverse(stage, blocks, OPTIONS) for stage in stages]
    scores, own = 0, 0
    for block in blocks:
        g, vectors = (torch.stack([one[block.name].flatten() for one in of]) for of in (documents, measured))
        for inverse in reversed(inverses[1:]):
            vectors = inverse.pull * torch.linalg.solve(dense_curvature(inverse, block), vectors.T).T
        solved = torch.linalg.solve(dense_curvature(inverses[0], block), g.T).T
        scores, own = scores + solved @ vectors.T, own + (solved * g).sum(1)
    torch.testing.assert_close(torch.from_numpy(actual), (scores / own.sqrt()[:, None]).float(), rtol=1e-5, atol=1e-7)
    assert seconds > 0


def test_scores_are_the_mean_of_chains_that_are_opened_one_after_the_other(models, stage_examples, queries):
    blocks = tracked_blocks(models[0])
    chains = [
        Chain([ChainStage(model, stage_examples[0], DAMPINGS[0])], queries, blocks) for model in (models[0], models[2])
    ]
    opened = []

    def opening():
        for chain in chains:
            opened.append(chain)
            yield chain

    scores, seconds = mean_scores(opening(), OPTIONS)
    assert opened == chains
    alone = [chain_scores(chain, OPTIONS)[0] for chain in chains]
    assert not np.allclose(*alone)
    np.testing.assert_allclose(scores, (alone[0].astype(float) + alone[1]) / 2, rtol=1e-6)
    assert scores.dtype == np.float32
    assert seconds > 0


def test_a_chain_is_opened_from_its_manifests_and_records(tmp_path):
    """With α and damping as the config says: `auto` is that of the chain's own training record."""
    corpus = build_facts(countries=4, query_countries=2, glosses=False)
    tokenizer = build_tokenizer([record for records in corpus.values() for record in records])
    options = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    initial = build_model({"model_type": "gpt_neox", **options}, tokenizer, 0)
    schedule = Schedule(epochs=1, batch_size=8, learning_rate=5e-3, weight_decay=0.01, warmup=0.1)
    names = ["pretraining", "finetuning"]
    stages = [prepare_stage(corpus[name], tokenizer, 16, "language_modelling", schedule) for name in names]
    trained = retrain(initial, stages, [None, None], seed=0)
    for name, (model, record) in zip(names, trained, strict=True):
        save_checkpoint(tmp_path / name, model, tokenizer, training=asdict(record))
    for name in (*names, "queries"):
        write_records(tmp_path / f"{name}.jsonl", corpus[name])
    links = [{"damping": {"relative": 0.1}, "alpha": None}, {"damping": {"relative": 0.2}, "alpha": "auto"}]
    opened = open_chain(
        [tmp_path / name / "manifest.json" for name in names],
        links,
        [tmp_path / f"{name}.jsonl" for name in names],
        tmp_path / "queries.jsonl",
        {"max_length": 16, "gpus": 0},
    )
    pulls = [0.0, default_pull(vars(trained[1][1]))]
    assert [stage.pull for stage in opened.stages] == pulls
    expected = Chain(
        [
            ChainStage(model, stage.examples, Damping(relative=rho), pull)
            for (model, _), stage, rho, pull in zip(trained, stages, (0.1, 0.2), pulls, strict=True)
        ],
        encode(corpus["queries"], tokenizer, 16, end=False),
        tracked_blocks(initial),
    )
    np.testing.assert_array_equal(chain_scores(opened, OPTIONS)[0], chain_scores(expected, OPTIONS)[0])
