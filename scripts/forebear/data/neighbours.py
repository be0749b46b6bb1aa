"""Documents nearest to a query in a sentence encoder's space, as all rankers' candidates."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
    indices = {document["id"]: i for i, document in enumerate(pool)}
    named, everything = [], set()
    for query, found in zip(queries, nearest, strict=True):
        chosen = sorted({*found, *(indices[name] for name in query.get("relevant", []) if name in indices)})
        everything.update(chosen)
        named.append({**query, "candidates": [pool[i]["id"] for i in chosen]})
    return named, [pool[i] for i in sorted(everything)]
