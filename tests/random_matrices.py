"""Random matrices in float64 for tests of sums of outer products."""

import torch

from forebear.gradients.outer_products import OuterProducts


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(blocks, queries: int, rank: int) -> dict[str, OuterProducts]:
    return {
        b.name: OuterProducts(normal(2 * k, queries, rank, b.shape[0]), normal(2 * k + 1, queries, rank, b.shape[1]))
        for k, b in enumerate(blocks)
    }
