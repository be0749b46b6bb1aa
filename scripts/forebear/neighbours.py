"""Documents nearest to a query in a sentence encoder's space, as all rankers' candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forebear.progress import progress

BATCH = 64  # texts embedded together


@torch.no_grad()
def mean_token_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int = 256
) -> Tensor:
    """An encoder's last hidden states averaged over each text's tokens (all-MiniLM-L6-v2's pooling), [N, D].

    Args:
        max_length: in tokens; longer texts are cut (256 is what all-MiniLM-L6-v2 was trained for).
    """
    embeddings = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in progress(range(0, len(order), BATCH), "sentence embeddings", "batch"):
        chosen = order[first : first + BATCH]
        inputs = tokenizer(
            [texts[i] for i in chosen], padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        ).to(model.device)
        hidden, real = model(**inputs).last_hidden_state.float(), inputs["attention_mask"][..., None]
        embeddings[chosen] = ((hidden * real).sum(1) / real.sum(1)).cpu()
    return embeddings


def with_neighbours(
    queries: Sequence[dict], pool: Sequence[dict], query_vectors: Tensor, pool_vectors: Tensor, count: int
) -> tuple[list[dict], list[dict]]:
    """Queries with their `candidates`, and the documents of the pool that are a candidate of any.

    Args:
        query_vectors, pool_vectors: [Q, D] and [N, D].
        count: nearest documents by cosine for each query; those that it names as `relevant` are added.
    """
    normalise = torch.nn.functional.normalize
    nearest = (normalise(query_vectors) @ normalise(pool_vectors).T).topk(min(count, len(pool)), dim=1).indices.tolist()
    places = {document["id"]: i for i, document in enumerate(pool)}
    named, everything = [], set()
    for query, found in zip(queries, nearest, strict=True):
        chosen = sorted({*found, *(places[name] for name in query.get("relevant", []) if name in places)})
        everything.update(chosen)
        named.append({**query, "candidates": [pool[i]["id"] for i in chosen]})
    return named, [pool[i] for i in sorted(everything)]
