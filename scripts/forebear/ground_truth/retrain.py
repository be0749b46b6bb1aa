"""Retraining on a subset of the documents: what every estimator is judged by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from forebear.data.chat import DEFAULT_CHAT, Chat
from forebear.data.records import classes_of
from forebear.data.sequences import Example, encode
from forebear.models.heads import with_head
from forebear.models.training import Schedule, TrainingRecord, train


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
    for place, (stage, subset) in enumerate(zip(stages, subsets, strict=True), start=first_stage):
        model = with_head(model, stage.task, list(stage.classes or ()), seed)
        model, record = train(model, stage.examples, stage.schedule, (seed, place), subset, description)
        trained.append((model, record))
    return trained
