"""Gradients of queries, and scores of documents against preconditioned queries.

Documents are streamed once: a batch's gradients are formed block by block and meet all
columns of all estimators. Larger scores mean proponents: more weight on the document
lowers the query's loss.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.blocks import Block
from forebear.capture import Captured, capture
from forebear.datasets import Example, batch_indices, collate
from forebear.progress import progress

FLUSH_SECONDS = 20.0  # scores are handed on at least this often


@dataclass(frozen=True)
class Request:
    """One estimator's wish: the columns it reads and the blocks it counts."""

    columns: str
    blocks: frozenset[str]
    cosine: bool = False


def sequence_gradients(captured: Captured, block: Block) -> Tensor:
    """The gradient of every sequence's loss, [B, O, I]."""
    a, g = captured.block(block)
    return torch.bmm(g.transpose(1, 2), a)


def query_gradients(
    model: PreTrainedModel, blocks: Sequence[Block], examples: Sequence[Example], batch_tokens: int
) -> tuple[dict[str, Tensor], Tensor]:
    """∇m of every query, block → [Q, O, I], and its loss m [Q]."""
    gradients = {block.name: torch.empty(len(examples), *block.shape, dtype=model.dtype) for block in blocks}
    losses = torch.empty(len(examples), dtype=model.dtype)
    for indices in progress(batch_indices(examples, batch_tokens), "query gradients", "batch"):
        captured = capture(model, blocks, collate(examples, indices))
        losses[indices] = captured.losses.cpu()
        for block in blocks:
            gradients[block.name][indices] = sequence_gradients(captured, block).cpu()
    return gradients, losses


def pairwise_scores(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    columns: Mapping[str, Mapping[str, Tensor]],
    requests: Mapping[str, Request],
    batch_tokens: int,
    write: Callable[[str, np.ndarray, np.ndarray], None],
    skip: np.ndarray | None = None,
) -> dict[str, float]:
    """Score every document against every query, for all estimators in one pass.

    Args:
        columns: name → block → preconditioned queries [Q, O, I].
        requests: estimator → what it reads.
        write: called with (estimator, document indices [n], scores [n, Q]).
        skip: [N] bool, documents whose scores are there already.

    Returns:
        Seconds per estimator: the pass over the documents, which each would need alone,
        plus its own contraction.
    """
    flat = {name: {b: v.flatten(1).T for b, v in tensors.items()} for name, tensors in columns.items()}
    norms = {
        name: sum(v.double().square().sum((1, 2)) for v in tensors.values()).sqrt() for name, tensors in columns.items()
    }
    wanted = [i for i in range(len(examples)) if skip is None or not skip[i]]
    remaining = [examples[i] for i in wanted]
    places = np.array(wanted, dtype=np.int64)
    seconds: dict[object, float] = {}
    pending = _Pending(write)
    for indices in progress(batch_indices(remaining, batch_tokens), "scores", "batch"):
        scores, timed = _score_batch(model, blocks, collate(remaining, indices), flat, norms, requests)
        for name, value in timed.items():
            seconds[name] = seconds.get(name, 0.0) + value
        pending.add(places[indices], scores)
    pending.flush()
    return {
        estimator: sum(seconds.get(part, 0.0) for part in ["pass", *((request.columns, b) for b in request.blocks)])
        for estimator, request in requests.items()
    }


def _score_batch(model, blocks, batch, flat, norms, requests) -> tuple[dict[str, Tensor], dict[object, float]]:
    """Scores [B, Q] of one batch for every estimator, and the seconds of the pass and of each (columns, block)."""
    clock = _Clock()
    captured = capture(model, blocks, batch)
    shape = (len(batch.indices), next(iter(norms.values())).shape[0])
    scores = {estimator: torch.zeros(shape, dtype=model.dtype, device=model.device) for estimator in requests}
    squares = torch.zeros(shape[0], dtype=torch.float64, device=model.device)
    clock.lap("pass")
    for block in blocks:
        gradients = sequence_gradients(captured, block).flatten(1)  # [B, O·I]
        if any(request.cosine for request in requests.values()):
            squares += gradients.square().sum(1)
        clock.lap("pass")
        for name, tensors in flat.items():
            users = [e for e, request in requests.items() if request.columns == name and block.name in request.blocks]
            if users:
                product = gradients @ tensors[block.name]
                for estimator in users:
                    scores[estimator] += product
            clock.lap((name, block.name))
    for estimator, request in requests.items():
        if request.cosine:
            scores[estimator] /= squares.sqrt()[:, None] * norms[request.columns] + 1e-30
    return scores, clock.seconds


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[object, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: object) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


class _Pending:
    """Rows waiting to be written, so that files are not touched for every batch."""

    def __init__(self, write: Callable[[str, np.ndarray, np.ndarray], None]) -> None:
        self._write = write
        self._places: list[np.ndarray] = []
        self._scores: list[dict[str, Tensor]] = []
        self._since = time.monotonic()

    def add(self, places: np.ndarray, scores: dict[str, Tensor]) -> None:
        self._places.append(places)
        self._scores.append(scores)
        if time.monotonic() - self._since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._places:
            places = np.concatenate(self._places)
            for estimator in self._scores[0]:
                self._write(estimator, places, torch.cat([s[estimator] for s in self._scores]).float().cpu().numpy())
        self._places, self._scores, self._since = [], [], time.monotonic()
