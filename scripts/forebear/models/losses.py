"""Losses of sequences under a model: summed over targets, and refused where they are not finite."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from forebear.data.batches import IGNORED, batch_indices, collate
from forebear.data.sequences import Example
from forebear.errors import ForebearError, shortened
from forebear.models.heads import position_logits


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over all targets; logits [B, T, V or C], labels [B, T]."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def sequence_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over each sequence's targets, [B], in the logits' precision."""
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels).sum(1)


def check_losses(losses: Tensor, indices: Tensor, description: str) -> None:
    """Refuse losses [B] that are NaN or infinite, naming the sequences by their `indices` [B].

    Raises:
        ForebearError: with the documents' indices in their data set.
    """
    bad = ~torch.isfinite(losses)
    if bad.any():
        found = indices[bad.cpu()].tolist()
        raise ForebearError(
            f"{description}: the loss is {losses[bad][0].item()} on the documents {shortened(found)} (counted from 0); "
            "check these documents and the weights, or lower `learning_rate`."
        )


@torch.no_grad()
def evaluate_losses(
    model: PreTrainedModel,
    examples: Sequence[Example],
    chosen: np.ndarray | None = None,
    batch_tokens: int = 8192,
    description: str = "evaluation",
) -> Tensor:
    """Summed cross-entropy of every sequence's targets, [N], or of those at the indices `chosen` [N], ascending."""
    chosen = np.arange(len(examples)) if chosen is None else chosen
    losses = torch.empty(len(chosen))
    for wanted in batch_indices(examples, batch_tokens, chosen):
        batch, indices = collate(examples, wanted).to(model.device), np.searchsorted(chosen, wanted)
        losses[indices] = sequence_losses(position_logits(model, batch.ids).float(), batch.labels).cpu()
        check_losses(losses[indices], batch.indices, description)
    return losses
