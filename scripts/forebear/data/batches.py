"""Padded batches of token sequences, and the one place where labels are shifted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forebear.data.sequences import Example
from forebear.data.token_files import lengths_of, positions_of

IGNORED = -100  # the label of a position without a target; cross_entropy's default


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Under a causal mask real positions never see the padding to their right, so no
    attention mask is needed.
    """

    indices: Tensor  # [B] indices of the sequences in the data set
    ids: Tensor  # [B, T]
    labels: Tensor  # [B, T] the token or class that position t must predict, or IGNORED
    positions: Tensor  # [B, T] bool: the first `Example.positions` of each sequence

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.indices, self.ids.to(device), self.labels.to(device), self.positions.to(device))


def shifted_labels(ids: Tensor, first_targets: Tensor, lengths: Tensor) -> Tensor:
    """labels[b, t] = ids[b, t + 1] where token t + 1 is a target, else IGNORED.

    Args:
        ids: [B, T], right-padded.
        first_targets: [B], index of the first token that carries loss.
        lengths: [B], real tokens of each sequence.
    """
    following = torch.arange(1, ids.shape[1] + 1)  # the token that each position predicts
    is_target = (following >= first_targets[:, None]) & (following < lengths[:, None])
    return torch.where(is_target, ids.roll(-1, dims=1), IGNORED)


def collate(examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """Pad the chosen sequences to the longest of them."""
    chosen = [examples[i] for i in indices]
    lengths = torch.tensor([len(e.ids) for e in chosen])
    ids = torch.nn.utils.rnn.pad_sequence([e.ids for e in chosen], batch_first=True)
    labels = shifted_labels(ids, torch.tensor([e.first_target for e in chosen]), lengths)
    for row, example in enumerate(chosen):
        if example.targets is not None:
            labels[row, : len(example.ids) - 1][~example.targets[1:]] = IGNORED
        if example.label is not None:
            labels[row, len(example.ids) - 1] = example.label
    positions = torch.arange(ids.shape[1]) < torch.tensor([e.positions for e in chosen])[:, None]
    return Batch(torch.as_tensor(indices), ids, labels, positions)


def batch_indices(
    examples: Sequence[Example], batch_tokens: int, documents: Sequence[int] | None = None
) -> list[list[int]]:
    """Partition a data set, longest first, into batches of at most `batch_tokens` padded tokens.

    Neighbours have like lengths, so there is little padding; the largest batch comes
    first, so that running out of memory is noticed at once.

    Args:
        documents: indices of the sequences that are wanted, ascending; all by default. Some
            of the whole's batches are again those batches.
    """
    lengths = lengths_of(examples)
    wanted = np.arange(len(examples)) if documents is None else np.asarray(documents, dtype=np.int64)
    batches, current = [], []
    for index in wanted[np.argsort(-lengths[wanted], kind="stable")].tolist():
        if current and lengths[current[0]] * (len(current) + 1) > batch_tokens:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches


def batches(examples: Sequence[Example], batch_tokens: int) -> list[Batch]:
    return [collate(examples, indices) for indices in batch_indices(examples, batch_tokens)]


def shard_documents(examples: Sequence[Example], batch_tokens: int, shard: int, shards: int) -> np.ndarray:
    """Indices [n] int64, ascending, of the documents of a shard, counted from 1: those of every `shards`-th batch.

    Shards are made of whole batches, so that the very same batches are computed however
    many they are, and have like lengths. There are none where there are fewer batches than shards.
    """
    chosen = batch_indices(examples, batch_tokens)[shard - 1 :: shards]
    return np.array(sorted(index for batch in chosen for index in batch), dtype=np.int64)


def number_of_positions(examples: Sequence[Example], documents: Sequence[int] | None = None) -> int:
    """Positions of some sequences, or of all, that can carry loss: what covariances average over."""
    positions = positions_of(examples)
    return int((positions if documents is None else positions[np.asarray(documents, dtype=np.int64)]).sum())
