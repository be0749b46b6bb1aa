"""Scores of documents against preconditioned queries: the pass over the documents.

Documents are streamed: a batch's gradients are formed block by block and meet all columns of
all estimators, in one pass if memory holds these, else in one for each partition of them.
Columns that are sums of outer products can stay so; they meet the tokens' vectors instead.
Larger scores mean proponents: more weight on the document lowers the query's loss.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.data.batches import batch_indices
from forebear.data.sequences import Example
from forebear.gradients.blocks import Block, device_of
from forebear.gradients.capture import capture
from forebear.gradients.outer_products import Matrices, OuterProducts, formed, in_memory
from forebear.gradients.per_sequence import gradient_slices
from forebear.models.passes import NotEnoughMemoryError, attempt, in_batches
from forebear.planning.partitions import Partition

FLUSH_SECONDS = 20.0  # scores are handed on at least this often

# Where there are several partitions: batches that go through all of them before the next.
FIRST_GROUP = 4
GROUP_SECONDS = 300.0  # that later groups are meant to take


@dataclass(frozen=True)
class Request:
    """One estimator's wish: the columns it reads and the blocks it counts."""

    columns: str
    blocks: frozenset[str]
    cosine: bool = False


def pairwise_scores(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    columns: Mapping[str, Mapping[str, Matrices]],
    requests: Mapping[str, Request],
    batch_tokens: int,
    write: Callable[[str, np.ndarray, np.ndarray], None],
    documents: Sequence[int] | None = None,
    partitions: Sequence[Partition] = (),
    factored: Collection[str] = (),
) -> dict[str, float]:
    """Score every document against every query, for all estimators in one pass, or in one for each partition.

    Where there are several partitions, the documents go through all of them in groups, so
    that finished rows are written every few minutes. A batch that does not fit into memory
    beside its partition's queries is run in halves.

    Args:
        columns: name → block → preconditioned queries [Q, O, I], in memory or in a file from
            which a partition's are read; each name may have its own Q.
        requests: estimator → what it reads.
        write: called with (estimator, document indices [n], scores [n, Q]).
        documents: indices, ascending, of those that are scored; all by default.
        partitions: of blocks and queries, whose columns are held at the same time; one by default.
        factored: blocks whose columns, where they are outer products, are not formed.

    Returns:
        Seconds per estimator: the passes over the documents, which each would need alone,
        plus reading and contracting its own columns.

    Raises:
        NotEnoughMemoryError: a partition's queries do not fit, or one document does not beside them.
    """
    todo = batch_indices(examples, batch_tokens, documents)
    read = frozenset().union(*(request.blocks for request in requests.values()))
    parts = list(partitions) or [Partition(tuple(block for block in blocks if block.name in read))]
    clock, pending, size = _Clock(), _Pending(write), FIRST_GROUP
    while todo:
        group = todo if len(parts) == 1 else todo[:size]
        began = time.monotonic()
        for scored, scores in _score_group(model, examples, group, columns, requests, parts, factored, clock):
            pending.add(scored, scores)
        size = max(1, round(len(group) * GROUP_SECONDS / (time.monotonic() - began)))
        todo = todo[len(group) :]
    pending.flush()
    return {
        estimator: sum(
            clock.seconds.get(part, 0.0) for part in ["pass", *((request.columns, b) for b in request.blocks)]
        )
        for estimator, request in requests.items()
    }


def _score_group(
    model: PreTrainedModel,
    examples: Sequence[Example],
    group: Sequence[Sequence[int]],
    columns: Mapping[str, Mapping[str, Matrices]],
    requests: Mapping[str, Request],
    partitions: Sequence[Partition],
    factored: Collection[str],
    clock: "_Clock",
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """(documents [B], estimator → scores [B, Q]) of a group's batches, after a pass for every partition."""
    rows = {document: row for row, document in enumerate(document for batch in group for document in batch)}
    totals: dict[object, Tensor] = {}  # of the partitions so far, if there are several
    norms: dict[str, Tensor] = {}
    for k, partition in enumerate(partitions, 1):
        name = "scores" if len(partitions) == 1 else f"scores, part {k} of {len(partitions)}"
        fits, held = attempt(_hold, model, columns, requests, partition, factored, clock)
        if not fits:
            raise NotEnoughMemoryError(f"{name}: its queries do not fit into memory; raise `memory` or `gpus`.")
        _add_norms(norms, columns, requests, partition, held)
        run = partial(_contract, model, columns, requests, partition, held, clock)
        for batch, sums in in_batches(run, examples, group, name):
            if len(partitions) > 1:
                indices = [rows[document] for document in batch.indices.tolist()]
                for key, term in sums.items():
                    total = totals.setdefault(key, term.new_zeros(len(rows), *term.shape[1:]))
                    total[indices] += term
                    sums[key] = total[indices]
            if k == len(partitions):
                yield batch.indices.numpy(), {e: _score(sums, norms, e) for e in requests}
            clock.restart()
        del held, run  # before the next partition's are read


def _hold(
    model: PreTrainedModel,
    columns: Mapping[str, Mapping[str, Matrices]],
    requests: Mapping[str, Request],
    partition: Partition,
    factored: Collection[str],
    clock: "_Clock",
) -> dict[str, dict[str, Matrices]]:
    """name → block → a partition's columns [O·I, q], or their factors; beside the block's layer, if an estimator reads them."""
    held: dict[str, dict[str, Matrices]] = {name: {} for name in columns}
    for block in partition.blocks:
        for name in {r.columns: None for r in requests.values() if block.name in r.blocks}:
            vectors = in_memory(columns[name][block.name], partition.queries)
            if not (isinstance(vectors, OuterProducts) and block.name in factored):
                vectors = formed(vectors).flatten(1).T
            held[name][block.name] = vectors.to(device_of(model, block.module))
            clock.lap((name, block.name))
    return held


def _add_norms(norms, columns, requests, partition, held) -> None:
    """Add a partition's part of the squared lengths [Q] of the queries of every cosine."""
    for estimator, request in requests.items():
        for block in partition.blocks if request.cosine else ():
            if block.name in request.blocks:
                vectors = held[request.columns][block.name]
                factored = isinstance(vectors, OuterProducts)
                squares = (vectors.squared_norms() if factored else vectors.square().sum(0)).cpu()
                total = norms.setdefault(estimator, squares.new_zeros(_queries(columns[request.columns])))
                total[partition.queries] += squares


def _contract(model, columns, requests, partition, held, clock, batch) -> dict[object, Tensor]:
    """A partition's part of a batch's products with the queries, estimator → [B, Q].

    For a cosine also of the documents' squared lengths, (estimator, "squares") → [B].
    """
    captured = capture(model, partition.blocks, batch)
    clock.lap("pass")
    sequences, losses = len(captured.losses), captured.losses
    sums = {e: losses.new_zeros(sequences, _queries(columns[request.columns])) for e, request in requests.items()}
    sums |= {(e, "squares"): losses.new_zeros(sequences) for e, request in requests.items() if request.cosine}
    for block in partition.blocks:
        readers = {estimator: request for estimator, request in requests.items() if block.name in request.blocks}
        measured = [(e, "squares") for e, r in readers.items() if r.cosine and partition.first == 0]
        vectors = {name: held[name][block.name] for name in dict.fromkeys(r.columns for r in readers.values())}
        products, squares = _products(captured, block, vectors, bool(measured), clock)
        for key in measured:
            sums[key] += squares.to(losses.device)
        for estimator, request in readers.items():
            sums[estimator][:, partition.queries] += products[request.columns].to(losses.device)
    return sums


def _products(captured, block, vectors, measured, clock) -> tuple[dict[str, Tensor], Tensor]:
    """A batch's products with a block's columns, name → [B, q], and if `measured` its gradients' squared lengths [B].

    The gradients are formed if any columns are.
    """
    a, g = captured.block(block)
    tokens, squares = OuterProducts(g, a), a.new_zeros(len(a))
    matrices = {name: v for name, v in vectors.items() if not isinstance(v, OuterProducts)}
    products = {name: v.new_zeros(len(a), v.shape[1]) for name, v in matrices.items()}
    for part, gradients in gradient_slices(captured, block) if matrices else ():
        if measured:
            squares += gradients.square().sum(1)
        clock.lap("pass")
        for name, v in matrices.items():
            products[name].addmm_(gradients, v[part])
            clock.lap((name, block.name))
    if measured and not matrices:
        squares = tokens.squared_norms()
        clock.lap("pass")
    for name, v in vectors.items():
        if name not in matrices:
            products[name] = tokens.products(v)
            clock.lap((name, block.name))
    return products, squares


def _score(sums: Mapping[object, Tensor], norms: Mapping[str, Tensor], estimator: str) -> Tensor:
    """Scores [B, Q]: the products, of a cosine divided by both lengths."""
    if estimator not in norms:
        return sums[estimator]
    lengths = sums[estimator, "squares"].sqrt()[:, None] * norms[estimator].to(sums[estimator]).sqrt()
    return sums[estimator] / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)


def _queries(columns: Mapping[str, Matrices]) -> int:
    return len(next(iter(columns.values())))


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[object, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: object) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def restart(self) -> None:
        """Leave out what was done since the last lap."""
        self._last = time.perf_counter()


class _Pending:
    """Rows waiting to be written, so that files are not touched for every batch."""

    def __init__(self, write: Callable[[str, np.ndarray, np.ndarray], None]) -> None:
        self._write = write
        self._indices: list[np.ndarray] = []
        self._scores: list[dict[str, Tensor]] = []
        self._since = time.monotonic()

    def add(self, indices: np.ndarray, scores: dict[str, Tensor]) -> None:
        self._indices.append(indices)
        self._scores.append(scores)
        if time.monotonic() - self._since > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._indices:
            indices = np.concatenate(self._indices)
            for estimator in self._scores[0]:
                self._write(estimator, indices, torch.cat([s[estimator] for s in self._scores]).float().cpu().numpy())
        self._indices, self._scores, self._since = [], [], time.monotonic()
