"""Rankers that need no curvature: embeddings of the model, BM25 on words, and chance.

Each takes the documents and the queries as the gradient-based estimators see them and
gives scores [N, Q], larger for closer.
"""

import re
from collections.abc import Sequence

import bm25s
import numpy as np
import torch
from torch import Tensor, nn

from forebear.datasets import Example, batches, full_text
from forebear.progress import progress


@torch.no_grad()
def mean_hidden_states(model: nn.Module, examples: Sequence[Example], batch_tokens: int) -> Tensor:
    """The last layer's hidden states averaged over each sequence's positions, [N, hidden]."""
    embeddings = torch.empty(len(examples), model.config.hidden_size)
    for batch in progress(batches(examples, batch_tokens), "embeddings", "batch"):
        batch = batch.to(model.device)
        hidden = model.base_model(batch.ids, use_cache=False).last_hidden_state.float()
        real = batch.positions[..., None]
        embeddings[batch.indices] = ((hidden * real).sum(1) / real.sum(1)).cpu()
    return embeddings


def cosine_scores(documents: Tensor, queries: Tensor) -> np.ndarray:
    """[N, Q] cosines of the rows of [N, D] and [Q, D]."""
    normalise = torch.nn.functional.normalize
    return (normalise(documents) @ normalise(queries).T).numpy()


def words(record: dict) -> list[str]:
    """A record's words in lower case, for BM25."""
    return re.findall(r"\w+", full_text(record).lower())


def bm25_index(documents: Sequence[dict]) -> bm25s.BM25:
    """A BM25 index over words (Lucene's variant, k1 = 1.5, b = 0.75: the library's defaults)."""
    index = bm25s.BM25()
    index.index([words(document) for document in documents], show_progress=False)
    return index


def bm25_scores(index: bm25s.BM25, queries: Sequence[dict]) -> np.ndarray:
    """[N, Q] BM25 of prompt and completion against every document."""
    columns = []
    for query in progress(queries, "BM25", "query"):
        known = [word for word in words(query) if word in index.vocab_dict]
        columns.append(index.get_scores(known) if known else np.zeros(index.scores["num_docs"]))
    return np.stack(columns, axis=1).astype(np.float32)


def random_scores(documents: int, queries: int, seed: Sequence[int]) -> np.ndarray:
    """[N, Q] standard normal numbers."""
    return np.random.default_rng([*seed, 7]).standard_normal((documents, queries)).astype(np.float32)
