"""Factors fitted on a data set: covariances, and eigenvalues Λ in their eigenbasis.

Each is one pass of the model over the sequences, with labels drawn from the model. The
mathematics is in `kronecker`; here are the loops.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from forebear.data.batches import batch_indices, number_of_positions
from forebear.data.sequences import Example
from forebear.factors.kronecker import Covariances, Eigenbasis, rotated
from forebear.gradients.alignment import aligned, aligned_empty
from forebear.gradients.blocks import Block, device_of
from forebear.gradients.capture import captured_batches, sampled_labels, working_dtype
from forebear.gradients.per_sequence import summed_squares

# Streams of random labels: Λ is fitted on other labels than the eigenbasis.
_COVARIANCE_STREAM, _EIGENVALUE_STREAM = 0, 1


def fit_covariances(
    model: nn.Module,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    seed: int,
    batch_tokens: int,
    label_samples: int = 1,
    documents: Sequence[int] | None = None,
    double: bool = False,
) -> Covariances:
    """Covariances over all positions of a data set, labels drawn from the model.

    Args:
        documents: indices, ascending, of those that are counted; all by default.
        double: whether the means are in float64, so that nothing is lost when shards are put together, in
            place of the working precision.
    """
    activation: dict[str, Tensor] = {}
    gradient: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()  # module → positions that its means are over
    apart: set[str] = set()  # modules that do not see each position once
    wanted = batch_indices(examples, batch_tokens, documents)
    for sample in range(label_samples):
        labels = sampled_labels(examples, (seed, _COVARIANCE_STREAM, sample))
        for _, captured in captured_batches(model, blocks, examples, wanted, "covariances", labels):
            everywhere = captured.positions.flatten().nonzero().squeeze(1)
            own = {m: seen.flatten().nonzero().squeeze(1) for m, seen in captured.own_positions.items()}
            apart |= own.keys()
            for module, a in captured.activations.items():
                if sample == 0:  # activations do not depend on the labels
                    counted = own.get(module, everywhere)
                    counts[module] += len(counted)
                    _accumulate(activation, module, _second_moment(a, counted))
            for block in blocks:
                counted = own.get(block.module, everywhere)
                _accumulate(gradient, block.name, _second_moment(captured.block(block)[1], counted))
    positions = number_of_positions(examples, documents)
    dtype = torch.float64 if double else working_dtype(model)
    seen = {block.name: counts[block.module] * label_samples for block in blocks}
    shares = {module: torch.tensor([counts[module] / positions], dtype=torch.float64) for module in sorted(apart)}
    return Covariances(_means(activation, counts, dtype), _means(gradient, seen, dtype), shares)


def fit_eigenvalues(
    model: nn.Module,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    basis: Eigenbasis,
    seed: int,
    batch_tokens: int,
    label_samples: int = 1,
    documents: Sequence[int] | None = None,
    double: bool = False,
) -> dict[str, Tensor]:
    """Λ of every block, [O, I]: second moments of per-sequence gradients in the eigenbasis.

    Args:
        documents, double: as for the covariances.
    """
    eigenvalues: dict[str, Tensor] = {}
    activation, gradient = beside_the_model(basis, model, blocks)
    blocks_of = {block.module: [b for b in blocks if b.module == block.module] for block in blocks}
    wanted = batch_indices(examples, batch_tokens, documents)
    for sample in range(label_samples):
        labels = sampled_labels(examples, (seed, _EIGENVALUE_STREAM, sample))
        for _, captured in captured_batches(model, blocks, examples, wanted, "eigenvalues", labels):
            for module, a in captured.activations.items():
                a = rotated(a, activation[module])
                for block in blocks_of[module]:
                    g = rotated(captured.block(block)[1], gradient[block.name])
                    _accumulate(eigenvalues, block.name, summed_squares(g, a))
    sequences = sum(map(len, wanted))
    dtype = torch.float64 if double else working_dtype(model)
    return _means(eigenvalues, dict.fromkeys(eigenvalues, sequences * label_samples), dtype)


def beside_the_model(
    basis: Eigenbasis, model: nn.Module, blocks: Sequence[Block]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(module → Q_A, block → Q_S), aligned, each on the device of its block."""
    dtype = working_dtype(model)

    def placed(vectors: Tensor, block: Block) -> Tensor:
        return aligned(vectors.to(device_of(model, block.module), dtype))

    activation = {b.module: placed(basis.activation[b.module], b) for b in {b.module: b for b in blocks}.values()}
    return activation, {block.name: placed(basis.gradient[block.name], block) for block in blocks}


def _second_moment(vectors: Tensor, counted: Tensor) -> Tensor:
    """Σ v vᵀ over the counted ones of [B, T, D] vectors, [D, D].

    A product for each of four strips of rows, from the diagonal on. What lies below is the same
    again and is copied, which saves three eighths of the work.
    """
    chosen = aligned_empty(vectors, len(counted), vectors.shape[-1])
    torch.index_select(vectors.flatten(0, 1), 0, counted.to(vectors.device), out=chosen)
    width = chosen.shape[1]
    moment = chosen.new_empty(width, width)
    for first in range(0, width, strip := -(-width // 4)):
        last = first + strip
        torch.mm(chosen[:, first:last].T, chosen[:, first:], out=moment[first:last, first:])
        moment[last:, first:last] = moment[first:last, last:].T
    return moment


def _accumulate(totals: dict[str, Tensor], name: str, term: Tensor) -> None:
    """Add a batch's term; in float64, so that totals hardly depend on the order, and shards give what the whole does.

    On a GPU, whose memory is scarce and whose sums differ from run to run anyway, in the terms' precision.
    """
    if name in totals:
        totals[name] += term
    else:
        totals[name] = term.double() if term.device.type == "cpu" else term


def _means(totals: dict[str, Tensor], numbers: Mapping[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Empties `totals` one by one, so that both are never in memory as a whole. A mean over nothing is 0."""
    return {name: (totals.pop(name) / max(1, numbers[name])).to("cpu", dtype) for name in list(totals)}
