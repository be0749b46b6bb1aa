"""Rankers that need no curvature: hidden states, sentence embeddings, BM25 on words, and chance.

Each takes the documents and the queries as the gradient-based estimators see them and
gives scores [N, Q], larger for closer.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from forebear.data.batches import Batch
from forebear.data.sequences import Example
from forebear.models.passes import in_batches


def _hidden_states(
    model: nn.Module, examples: Sequence[Example], batch_tokens: int
) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Batches with the last layer's hidden states [B, T, D] and which of them count [B, T, 1]."""

    @torch.no_grad()
    def run(batch: Batch) -> Tensor:
        hidden = model.base_model(batch.ids.to(model.device), use_cache=False).last_hidden_state
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))

    for batch, hidden in in_batches(run, examples, batch_tokens, "hidden states"):
        yield batch, hidden, batch.positions[..., None].to(hidden.device)


def mean_hidden_states(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> Tensor:
    """The last layer's hidden states averaged over each sequence's positions, [N, hidden]."""
    embeddings = torch.empty(len(examples), model.config.hidden_size)
    for batch, hidden, real in _hidden_states(model, examples, batch_tokens):
        embeddings[batch.indices] = ((hidden * real).sum(1) / real.sum(1)).float().cpu()
    return embeddings


def unit_patterns(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices [B], X [B, T, D]) of batches: hidden states, centred over units, scaled so that ‖X Xᵀ‖ = 1.

    Positions that do not count are zero.
    """
    for batch, hidden, real in _hidden_states(model, examples, batch_tokens):
        centred = (hidden - hidden.mean(-1, keepdim=True)) * real
        norms = torch.linalg.matrix_norm(centred @ centred.transpose(1, 2)).sqrt()
        yield batch.indices, centred / norms[:, None, None]


def cka_scores(
    model: nn.Module,
    documents: Sequence[Example],
    queries: Sequence[tuple[Tensor, Tensor]],
    batch_tokens: int,
) -> np.ndarray:
    """Linear CKA of the hidden states of documents and queries, [N, Q] in [0, 1].

    Linear CKA (Kornblith et al. 2019, arXiv 1905.00414, section 3) compares what two sets of
    features say of the same examples. Sequences of different lengths have no tokens in
    common, but hidden units: so the D units are the examples, the T tokens the features, and
    with each token's state centred over the units

        CKA(X, Y) = ‖X Yᵀ‖² / (‖X Xᵀ‖ ‖Y Yᵀ‖)        X [T, D], Y [T', D], Frobenius norms.

    It is 1 for sequences whose tokens span the same directions. (The scripts of Bao et al.
    2025 put one row, the flattened gradient, in the place of X; without centring that is the
    squared cosine of two gradients.)

    Args:
        queries: what `unit_patterns` gives for them.
    """
    scores = np.empty((len(documents), sum(len(indices) for indices, _ in queries)), np.float32)
    for rows, x in unit_patterns(model, documents, batch_tokens):
        for columns, y in queries:
            products = (x.flatten(0, 1) @ y.flatten(0, 1).T).square_()
            cka = products.view(*x.shape[:2], *y.shape[:2]).sum((1, 3))
            scores[np.ix_(rows.numpy(), columns.numpy())] = cka.cpu().numpy()
    return scores


def random_scores(documents: int, queries: int, seed: Sequence[int]) -> np.ndarray:
    """[N, Q] standard normal numbers."""
    return np.random.default_rng([*seed, 7]).standard_normal((documents, queries)).astype(np.float32)
