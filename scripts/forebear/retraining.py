"""Retraining on a subset of the documents: what every estimator is judged by."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from forebear.datasets import Example
from forebear.training import Schedule, evaluate_losses, train


def retrain(
    initial: PreTrainedModel,
    stages: Sequence[tuple[Sequence[Example], Schedule, np.ndarray | None]],
    queries: Sequence[Example],
    seed: int,
    first_stage: int = 0,
    description: str = "retraining",
) -> Tensor:
    """Train the first attributed stage and every later one, each on its subset or on all its data.

    Args:
        initial: where the first attributed stage starts.
        stages: (sequences, schedule, [N] bool mask over the sequences or None for all) of the
            first attributed stage and those after it.
        first_stage: that stage's place in the chain; the place seeds a stage's data order.

    Returns:
        The measurement m of every query at the last model, [Q].
    """
    model = initial
    for place, (examples, schedule, subset) in enumerate(stages, start=first_stage):
        model, _ = train(model, examples, schedule, (seed, place), subset, description)
    return evaluate_losses(model, queries)
