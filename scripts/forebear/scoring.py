"""Gradients of queries, and scores of documents against preconditioned queries.

Documents are streamed once: a batch's gradients are formed block by block and meet all
columns of all estimators. Larger scores mean proponents: more weight on the document
lowers the query's loss.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.blocks import Block, device_of
from forebear.capture import Captured, capture, working_dtype
from forebear.datasets import Example, batch_indices, collate
from forebear.progress import progress

SLICE_ELEMENTS = 1 << 21  # of document gradients formed at once: 8 MiB in float32
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


def gradient_slices(captured: Captured, block: Block) -> Iterator[tuple[slice, Tensor]]:
    """The gradients of all sequences, a few output rows at a time: (columns of O·I, [B, those columns]).

    A slice is overwritten by the next, so that it stays in the processor's cache.
    """
    a, g = captured.block(block)
    sequences, width = a.shape[0], a.shape[2]
    rows = min(block.shape[0], max(1, SLICE_ELEMENTS // (sequences * width)))
    buffer = a.new_empty(sequences * rows * width)
    for first in range(0, block.shape[0], rows):
        part = g[..., first : first + rows].transpose(1, 2)
        gradients = buffer[: sequences * part.shape[1] * width].view(sequences, part.shape[1], width)
        torch.bmm(part, a, out=gradients)
        yield slice(first * width, (first + part.shape[1]) * width), gradients.flatten(1)


def query_gradients(
    model: PreTrainedModel, blocks: Sequence[Block], examples: Sequence[Example], batch_tokens: int
) -> tuple[dict[str, Tensor], Tensor]:
    """∇m of every query, block → [Q, O, I], and its loss m [Q]."""
    dtype = working_dtype(model)
    gradients = {block.name: torch.empty(len(examples), *block.shape, dtype=dtype) for block in blocks}
    losses = torch.empty(len(examples), dtype=dtype)
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
        columns: name → block → preconditioned queries [Q, O, I]; each name may have its own Q.
        requests: estimator → what it reads.
        write: called with (estimator, document indices [n], scores [n, Q]).
        skip: [N] bool, documents whose scores are there already.

    Returns:
        Seconds per estimator: the pass over the documents, which each would need alone,
        plus its own contraction.
    """
    places = {block.name: device_of(model, block.module) for block in blocks}
    flat = {
        name: {b: v.flatten(1).T.to(places.get(b, v.device)) for b, v in tensors.items()}
        for name, tensors in columns.items()
    }
    wanted = [i for i in range(len(examples)) if skip is None or not skip[i]]
    remaining = [examples[i] for i in wanted]
    documents = np.array(wanted, dtype=np.int64)
    seconds: dict[object, float] = {}
    pending = _Pending(write)
    for indices in progress(batch_indices(remaining, batch_tokens), "scores", "batch"):
        scores, timed = _score_batch(model, blocks, collate(examples, documents[indices].tolist()), flat, requests)
        for name, value in timed.items():
            seconds[name] = seconds.get(name, 0.0) + value
        pending.add(documents[indices], scores)
    pending.flush()
    return {
        estimator: sum(seconds.get(part, 0.0) for part in ["pass", *((request.columns, b) for b in request.blocks)])
        for estimator, request in requests.items()
    }


def _score_batch(model, blocks, batch, flat, requests) -> tuple[dict[str, Tensor], dict[object, float]]:
    """Scores [B, Q] of one batch for every estimator, and the seconds of the pass and of each (columns, block)."""
    clock = _Clock()
    captured = capture(model, blocks, batch)
    queries = {name: next(iter(blocks_of.values())).shape[1] for name, blocks_of in flat.items()}
    scores = {
        estimator: captured.losses.new_zeros(len(batch.indices), queries[request.columns])
        for estimator, request in requests.items()
    }
    cosines = {estimator: request for estimator, request in requests.items() if request.cosine}
    squares = {estimator: captured.losses.new_zeros(len(batch.indices)) for estimator in cosines}
    clock.lap("pass")
    for block in blocks:
        readers = {estimator: request for estimator, request in requests.items() if block.name in request.blocks}
        device = captured.block(block)[1].device
        products = {r.columns: torch.zeros_like(scores[e], device=device) for e, r in readers.items()}
        for part, gradients in gradient_slices(captured, block):
            for estimator in cosines.keys() & readers.keys():
                squares[estimator] += gradients.square().sum(1).to(captured.losses.device)
            clock.lap("pass")
            for name, product in products.items():
                product.addmm_(gradients, flat[name][block.name][part])
                clock.lap((name, block.name))
        for estimator, request in readers.items():
            scores[estimator] += products[request.columns].to(captured.losses.device)
    for estimator, request in cosines.items():
        squared = [flat[request.columns][name].square().sum(0) for name in request.blocks]
        norms = sum(part.to(captured.losses.device) for part in squared).sqrt()
        scores[estimator] /= (squares[estimator].sqrt()[:, None] * norms).clamp_min(torch.finfo(norms.dtype).tiny)
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
