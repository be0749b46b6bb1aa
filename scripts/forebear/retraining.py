"""Retraining on a subset of the documents: what every estimator is judged by."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from forebear.datasets import Example
from forebear.training import Schedule, evaluate_losses, train


def retrain(
    initial: PreTrainedModel,
    stages: Sequence[tuple[Sequence[Example], Schedule]],
    queries: Sequence[Example],
    mask: np.ndarray,
    seed: int,
    first_stage: int = 0,
    description: str = "retraining",
) -> Tensor:
    """Train the attributed stage on a subset and every later stage on its own data.

    Args:
        initial: where the attributed stage starts.
        stages: (sequences, schedule) of the attributed stage and those after it.
        mask: [N] bool over the attributed stage's sequences.
        first_stage: the attributed stage's place in the chain, which seeds its data order.

    Returns:
        The measurement m of every query at the last model, [Q].
    """
    model = initial
    for k, (examples, schedule) in enumerate(stages):
        subset = mask if k == 0 else None
        model, _ = train(model, examples, schedule, (seed, first_stage + k), subset, description)
    return evaluate_losses(model, queries)
