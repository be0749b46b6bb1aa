"""Retraining on subsets of the documents: what every estimator is judged by."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from forebear.artifacts.manifests import NAME
from forebear.data.chat import DEFAULT_CHAT, Chat
from forebear.data.records import classes_of
from forebear.data.sequences import Example, encode
from forebear.ground_truth.bank import Retraining, key_of_any_version, retraining_key
from forebear.models.checkpoints import save_checkpoint
from forebear.models.heads import with_head
from forebear.models.training import Schedule, TrainingRecord, train
from forebear.runtime.job import measured
from forebear.runtime.progress import progress


@dataclass(frozen=True)
class RetrainedStage:
    """One stage as it is retrained, on all or some of its examples."""

    examples: Sequence[Example]
    schedule: Schedule
    task: str = "language_modelling"
    classes: Mapping[str, int] | None = None  # label → class, of a classification


def prepare_stage(
    records: Sequence[dict], tokenizer, max_length: int, task: str, schedule: Schedule, chat: Chat = DEFAULT_CHAT
) -> RetrainedStage:
    """A stage's records as its task sees them."""
    labels = classes_of(records) if task == "classification" else None
    classes = None if labels is None else {label: k for k, label in enumerate(labels)}
    return RetrainedStage(encode(records, tokenizer, max_length, classes=classes, chat=chat), schedule, task, classes)


def retrain(
    initial: PreTrainedModel,
    stages: Sequence[RetrainedStage],
    subsets: Sequence[np.ndarray | None],
    seed: int,
    first_stage: int = 0,
    description: str = "retraining",
) -> list[tuple[PreTrainedModel, TrainingRecord]]:
    """Train the first attributed stage and every later one, each on its subset or on all its data.

    Args:
        initial: where the first attributed stage starts.
        stages: the first attributed stage and those after it.
        subsets: of each of these, [N] bool over its examples, or None for all.
        seed: of new heads and, with a stage's place, of its data order.
        first_stage: the first attributed stage's place in the chain.

    Returns:
        The model of every one of these stages; at the last one queries are measured.
    """
    model, trained = initial, []
    for index, (stage, subset) in enumerate(zip(stages, subsets, strict=True), start=first_stage):
        model = with_head(model, stage.task, list(stage.classes or ()), seed)
        model, record = train(model, stage.examples, stage.schedule, (seed, index), subset, description)
        trained.append((model, record))
    return trained


def retrain_missing(
    plan: Sequence[Retraining],
    subsets: Mapping[str, np.ndarray],
    stages: Mapping[str, RetrainedStage],
    initial: Callable[[int], PreTrainedModel],
    tokenizer,
    recipe: Mapping,
    bank: Path,
    first_stage: int = 0,
    accept_other_versions: bool = False,
) -> list[str]:
    """Retrain what the bank does not have yet; every model is kept there as soon as its retraining is finished.

    Args:
        subsets: attributed stage → [S, N] bool.
        stages: by name, the first attributed stage and those after it.
        initial: seed → the model where the first of these starts, on its device.
        tokenizer: of all these models.
        recipe: all that the models depend on beside subset and seed, see `retraining_key`.
        first_stage: as of `retrain`.
        accept_other_versions: use what other versions of the libraries have trained.

    Returns:
        The key of every retraining of the plan.
    """
    *_, last = stages
    keys = []
    for retraining in progress(plan, "retrainings", "model"):
        masks = {stage: subsets[stage][retraining.subset] for stage in stages if stage in subsets}
        key = retraining_key(recipe, np.concatenate(list(masks.values())), retraining.seed)
        if accept_other_versions:
            key = key_of_any_version(bank, key, last)
        keys.append(key)
        if (bank / key / last / NAME).exists():
            continue
        chosen = [masks.get(stage) for stage in stages]
        model = initial(retraining.seed)
        with measured() as cost:
            models = retrain(model, list(stages.values()), chosen, retraining.seed, first_stage)
        facts = {"subset": retraining.subset, "seed": retraining.seed, "cost": cost}
        for stage, (model, record) in zip(stages, models, strict=True):
            save_checkpoint(bank / key / stage, model, tokenizer, stage=stage, training=asdict(record), **facts)
    return keys
