"""Retrainings are kept one by one: a killed job goes on where it was, and what is there is never made again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from forebear.artifacts.manifests import read_manifest
from forebear.data.corpora.facts import build_facts
from forebear.data.sequences import encode
from forebear.errors import ForebearError
from forebear.ground_truth.bank import draw_subsets, plan_retrainings
from forebear.ground_truth.measure import measure_missing
from forebear.ground_truth.retrain import prepare_stage, retrain, retrain_missing
from forebear.models.checkpoints import load_model
from forebear.models.losses import evaluate_losses
from forebear.models.training import Schedule, build_model, build_tokenizer

MODEL = {
    "model_type": "gpt_neox",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
SCHEDULE = Schedule(epochs=1, batch_size=8, learning_rate=5e-3, weight_decay=0.01, warmup=0.1)
MAX_LENGTH = 16
RECIPE = {"training": "as above"}
PLAN = plan_retrainings(subsets=3, repeats=1, seed=0)
CORPUS = build_facts(countries=4, query_countries=2, glosses=False)
STAGES = ("pretraining", "finetuning")
TOKENIZER = build_tokenizer([record for stage in STAGES for record in CORPUS[stage]])


class Killed(BaseException):
    """What ends a job at once."""


class Job:
    """A job that retrains on random halves of the pretraining documents, and the seeds of those that it begins."""

    def __init__(self, bank: Path, killed_at: int | None = None):
        self.bank, self.killed_at, self.begun = bank, killed_at, []
        self.stages = {
            name: prepare_stage(CORPUS[name], TOKENIZER, MAX_LENGTH, "language_modelling", SCHEDULE) for name in STAGES
        }
        self.subsets = draw_subsets({"pretraining": len(CORPUS["pretraining"])}, 0.5, 3, seed=0)

    def initial(self, seed: int):
        self.begun.append(seed)
        if len(self.begun) == self.killed_at:
            raise Killed
        return build_model(MODEL, TOKENIZER, seed)

    def run(self, plan=PLAN, recipe=RECIPE, **options) -> list[str]:
        given = (plan, self.subsets, self.stages, self.initial, TOKENIZER, recipe, self.bank)
        return retrain_missing(*given, **options)


def weights(bank: Path) -> dict[str, bytes]:
    """Path → content of all models of a bank."""
    return {str(path.relative_to(bank)): path.read_bytes() for path in bank.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[str]]:
    """An undisturbed bank, and the keys of its retrainings."""
    job = Job(tmp_path_factory.mktemp("bank"))
    keys = job.run()
    assert job.begun == [0, 0, 0, 1]
    return job.bank, keys


@pytest.fixture
def bank(finished, tmp_path) -> Path:
    """A copy, free to be broken."""
    return shutil.copytree(finished[0], tmp_path / "bank")


def test_every_retraining_is_the_chain_of_its_subset_and_seed(finished):
    bank, keys = finished
    assert len(set(keys)) == len(PLAN)
    job = Job(bank)
    for key, retraining in zip(keys, PLAN, strict=True):
        masks = [job.subsets["pretraining"][retraining.subset], None]
        initial = build_model(MODEL, TOKENIZER, retraining.seed)
        expected = retrain(initial, list(job.stages.values()), masks, retraining.seed)
        for stage, (model, record) in zip(STAGES, expected, strict=True):
            loaded = load_model(bank / key / stage).state_dict()
            assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
            manifest = read_manifest(bank / key / stage / "manifest.json")
            assert (manifest["stage"], manifest["subset"], manifest["seed"]) == (stage, *vars(retraining).values())
            assert manifest["training"] == vars(record)
            assert manifest["cost"]["seconds"] > 0


def test_a_killed_job_goes_on_where_it_was(finished, tmp_path):
    killed = Job(tmp_path, killed_at=3)
    with pytest.raises(Killed):
        killed.run()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(there) == 2 * len(STAGES)
    again = Job(tmp_path)
    assert again.run() == finished[1]
    assert again.begun == [0, 1]
    assert {path: path.stat().st_mtime_ns for path in there} == there
    assert weights(tmp_path) == weights(finished[0])


def test_a_retraining_without_its_last_stage_is_made_again(finished, bank):
    (bank / finished[1][1] / STAGES[-1] / "manifest.json").unlink()
    job = Job(bank)
    assert job.run() == finished[1]
    assert job.begun == [0]
    assert weights(bank) == weights(finished[0])


def test_more_retrainings_and_other_shards_only_add(finished, tmp_path):
    for plan, begun in ((PLAN[1::2], 2), (PLAN[::2], 2), (PLAN, 0)):
        job = Job(tmp_path)
        keys = job.run(plan)
        assert len(job.begun) == begun
    assert keys == finished[1]
    assert weights(tmp_path) == weights(finished[0])


def test_a_changed_recipe_or_subset_is_another_key(finished, bank):
    keys = Job(bank).run(PLAN[:1], {"training": "another"})
    job = Job(bank)
    job.subsets = {"pretraining": ~job.subsets["pretraining"]}
    keys += job.run(PLAN[:1])
    assert len({*keys, *finished[1]}) == 2 + len(PLAN)
    assert weights(finished[0]).items() <= weights(bank).items()


def test_what_other_versions_have_trained_is_used_only_if_that_is_accepted(finished, bank):
    key = finished[1][0]
    other = f"{key.partition('-')[0]}-torch-1.0-transformers-4.0"
    (bank / key).rename(bank / other)
    accepting, refusing = Job(bank), Job(bank)
    assert accepting.run(accept_other_versions=True) == [other, *finished[1][1:]]
    assert not accepting.begun
    assert refusing.run() == finished[1]
    assert refusing.begun == [0]


def measured(bank: Path, keys: list[str], queries: list[dict]) -> np.ndarray:
    return measure_missing(bank, keys, STAGES[-1], queries, MAX_LENGTH, gpus=0)


def test_measurements_are_the_losses_of_the_queries_at_the_last_models(finished, bank):
    queries = CORPUS["queries"]
    found = measured(bank, finished[1], queries)
    examples = encode(queries, TOKENIZER, MAX_LENGTH, False)
    expected = [evaluate_losses(load_model(bank / key / STAGES[-1]), examples) for key in finished[1]]
    np.testing.assert_array_equal(found, torch.stack(expected).numpy())
    assert found.dtype == np.float32


def test_what_was_measured_is_read_back_in_whichever_order_the_queries_come(finished, bank):
    queries = CORPUS["queries"]
    first = measured(bank, finished[1], queries[:-1])
    for folder in bank.iterdir():
        shutil.rmtree(folder / STAGES[-1])
    np.testing.assert_array_equal(measured(bank, finished[1], queries[-2::-1]), first[:, ::-1])
    with pytest.raises(ForebearError, match="--forcerun retrain"):
        measured(bank, finished[1], queries)
