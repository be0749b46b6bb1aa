"""The plan of a pass that scores documents: partitions of blocks and queries, tokens in a batch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from forebear.gradients.blocks import Block
from forebear.planning.budget import Budget, Shape
from forebear.planning.partitions import Partition
from forebear.planning.plan import Plan, _Job, _plan


def plan_scores(
    shape: Shape,
    budget: Budget,
    batch_tokens: int,
    queries: Mapping[str, int],
    reads: Sequence[tuple[str, frozenset[str]]],
    ranks: Mapping[str, int | None] | None = None,
) -> Plan:
    """Columns of some linear maps, and where even one's are too many, of some queries at a time.

    Columns of r outer products can be formed, and meet the documents' gradients; or they stay
    factored and meet the tokens' vectors, which for T tokens takes r(O + I) / OI of the memory
    and Tr(O + I) / OI of the work for a query. They do in those blocks where the memory is saved
    for the least work; in how many, is what takes the fewest passes.

    Args:
        queries: name of a set of columns → how many it has.
        reads: (set of columns, blocks that are read of it) of every estimator.
        ranks: set of columns → of how many outer products its columns are sums, where they are.
    """
    read = {name: frozenset().union(*(blocks for n, blocks in reads if n == name)) for name, _ in reads}
    ranks = {name: rank for name, rank in (ranks or {}).items() if rank is not None}
    blocks = tuple(block for block in shape.blocks if any(block.name in chosen for chosen in read.values()))

    def contraction(block: Block, factored: bool) -> tuple[list[tuple[str, int, float]], float]:
        """(set of columns, numbers and flops of each query) of all that read a block, and flops before any query."""
        (rows, width), sets = block.shape, [name for name, chosen in read.items() if block.name in chosen]
        sizes = {name: ranks[name] * (rows + width) if factored and name in ranks else rows * width for name in sets}
        tokens = shape.tokens * block.seen
        works = {name: 2 * size * (tokens if factored and name in ranks else 1) for name, size in sizes.items()}
        forms = not factored or any(name not in ranks for name in sets)
        return [(name, sizes[name], works[name]) for name in sets], forms * 2 * tokens * rows * width

    contractions = {(b.name, factored): contraction(b, factored) for b in blocks for factored in (False, True)}

    def sums(part: Partition, factored: Collection[str]) -> tuple[int, float]:
        """Numbers held, and flops for each document."""
        counts = {name: len(range(*part.queries.indices(number))) for name, number in queries.items()}
        held = flops = 0
        for block in part.blocks:
            sets, before = contractions[block.name, block.name in factored]
            flops += before
            for name, size, work in sets:
                held += counts[name] * size
                flops += counts[name] * work
        return held, flops

    def planned(factored: frozenset[str]) -> Plan:
        job = _Job(
            "scores",
            blocks,
            lambda part: sums(part, factored)[0],
            lambda part: sums(part, factored)[1],
            queries=max((queries[name] for name in read), default=1),
        )
        return replace(_plan(job, shape, budget, batch_tokens), factored=factored)

    def price(block: Block) -> float | None:
        """Flops for each number that staying factored saves; None if it saves none."""
        (formed, work), (factored, other) = (sums(Partition((block,)), names) for names in ((), {block.name}))
        return (other - work) / (formed - factored) if factored < formed else None

    prices = {block.name: price(block) for block in blocks}
    limits = sorted({value for value in prices.values() if value is not None})
    cheap = [frozenset(n for n, value in prices.items() if value is not None and value <= most) for most in limits]
    return min((planned(factored) for factored in [frozenset(), *cheap]), key=lambda plan: (plan.excess, plan.passes))
