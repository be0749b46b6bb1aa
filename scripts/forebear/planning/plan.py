"""How a job fits into memory: which blocks at a time, how many tokens in a batch, and what that costs.

A plan is made from shapes and a budget alone. Bytes are estimates (docs/memory.md compares
them with measured peaks); flops count matrix products. One *pass* is a forward and a
backward pass of the model over the same documents, weight gradients included: 6 flops for
each parameter and token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from forebear.gradients.blocks import Block, factor_elements
from forebear.planning.budget import FLOAT, Budget, Shape
from forebear.planning.partitions import Partition, by_map, joined
from forebear.runtime.job import warn
from forebear.runtime.memory import memory_for

SMALLEST_BATCH = 256  # tokens; smaller ones keep a processor from its speed
LOGITS_COPIES = 4  # of a batch: the logits, their logarithms, and the gradients of both
MAPS_COPIES = 1.5  # what a pass keeps of the layers, over inputs and outputs of the tracked maps


@dataclass(frozen=True)
class Plan:
    """What is in memory at the same time, and how often the documents are gone through."""

    job: str
    partitions: tuple[Partition, ...]
    batch_tokens: int
    batch_bytes: int
    held_bytes: int  # of the largest partition
    budget: Budget
    passes: float  # estimated
    factored: frozenset[str] = frozenset()  # blocks where queries' outer products are not formed

    @property
    def bytes(self) -> int:
        return self.budget.taken + self.batch_bytes + self.held_bytes

    @property
    def excess(self) -> int:
        """Bytes over the budget."""
        return max(0, self.bytes - self.budget.total)

    @property
    def lack(self) -> str:
        """What to do where the smallest partitions and batches take more than there is; empty where they do not."""
        if not self.excess:
            return ""
        remedy = "raise `gpus`" if self.budget.gpus else f"set `memory: {memory_for(self.job, self.bytes):g}` or more"
        return (
            f"{self.job}: the smallest partitions and batches take about {self.bytes / 2**30:.1f} GB, and there are "
            f"{self.budget.total / 2**30:.1f} GB; {remedy} in the study."
        )

    def __str__(self) -> str:
        rows = {
            "process and model": self.budget.taken,
            f"a batch of {self.batch_tokens} tokens": self.batch_bytes,
            f"the largest of {len(self.partitions)} partitions": self.held_bytes,
            "together": self.bytes,
            "of": self.budget.total,
        }
        lines = [f"plan of {self.job}: about {self.passes:.1f} passes; memory in GB"]
        lines += [f"  {name:<40}{amount / 2**30:8.2f}" for name, amount in rows.items()]
        if self.factored:
            of = len({block.name for part in self.partitions for block in part.blocks})
            lines.append(f"  outer products of queries stay factored in {len(self.factored)} of {of} blocks")
        return "\n".join(lines)


def announce(plan: Plan) -> None:
    """Say in a job's log what it is about to do, and warn where that takes more than there is; it is tried nevertheless."""
    print(plan)
    if plan.lack:
        warn(plan.lack)


def plan_covariances(shape: Shape, budget: Budget, batch_tokens: int, samples: int = 1, double: bool = True) -> Plan:
    """Sums A [I, I] and S [O, O] of some linear maps at a time.

    Args:
        double: the sums are in float64, as they are on a processor.
    """

    def elements(partition: Partition) -> int:
        activations = {b.module: b.shape[1] ** 2 for b in partition.blocks}
        return sum(activations.values()) + sum(b.shape[0] ** 2 for b in partition.blocks)

    job = _Job(
        "covariances",
        shape.blocks,
        lambda part: (2 if double else 1) * elements(part),
        lambda part: 2 * shape.tokens * elements(part) * _seen(part),
        runs=samples,
    )
    return _plan(job, shape, budget, batch_tokens)


def plan_eigenvalues(shape: Shape, budget: Budget, batch_tokens: int, samples: int = 1, double: bool = True) -> Plan:
    """Eigenvectors Q_A [I, I], Q_S [O, O] and the sums Λ [O, I] of some linear maps at a time.

    Args:
        double: the sums are in float64, as they are on a processor.
    """

    def elements(partition: Partition) -> int:
        return sum(factor_elements(partition.blocks))

    job = _Job(
        "eigenvalues",
        shape.blocks,
        lambda part: elements(part) + (_parameters(part.blocks) if double else 0),
        lambda part: 2 * shape.tokens * elements(part) * _seen(part),  # both rotations, and the gradient's formation
        runs=samples,
    )
    return _plan(job, shape, budget, batch_tokens)


def plan_query_gradients(shape: Shape, budget: Budget, batch_tokens: int) -> Plan:
    """One run, which writes what the gradients are made of and forms none."""
    job = _Job("query gradients", shape.blocks, lambda part: 0, lambda part: 0)
    return _plan(job, shape, budget, batch_tokens)


def split_preconditioning(blocks: Sequence[Block], queries: int, room: float) -> list[Partition]:
    """Columns and factors that fit into `room` bytes: a linear map's queries as they are, and before and after a product."""

    def elements(partition: Partition) -> int:
        _, stop, _ = partition.queries.indices(queries)
        return 3 * (stop - partition.first) * _parameters(partition.blocks) + 2 * sum(factor_elements(partition.blocks))

    return _partitions(blocks, elements, queries, room)


@dataclass(frozen=True)
class _Job:
    """What differs between passes."""

    name: str
    blocks: tuple[Block, ...]  # that it runs over
    elements: Callable[[Partition], float]  # numbers that a partition holds
    flops: Callable[[Partition], float]  # for each document, beside the model's own
    queries: int = 1
    runs: int = 1


def _plan(job: _Job, shape: Shape, budget: Budget, batch_tokens: int) -> Plan:
    """The fewest partitions; among those, the largest batch."""
    best = None
    for tokens in _batch_sizes(batch_tokens):
        maps = {b.module: (b.shape[1] + b.shape[0]) * b.seen for b in shape.blocks}
        for_each = LOGITS_COPIES * shape.width + MAPS_COPIES * sum(maps.values())
        batch = FLOAT * max(tokens, shape.longest) * for_each
        partitions = _partitions(job.blocks, job.elements, job.queries, max(0, budget.room - batch))
        held = FLOAT * max(map(job.elements, partitions), default=0)
        flops = sum(job.runs * (_run_flops(shape, part) + job.flops(part)) for part in partitions)
        plan = Plan(
            job.name,
            tuple(partitions),
            tokens,
            int(batch),
            int(held),
            budget,
            flops / (6 * shape.tokens * shape.parameters),
        )
        if best is None or _badness(plan) < _badness(best):
            best = plan
    return best


def _badness(plan: Plan) -> tuple[int, int]:
    """Bytes over the budget, then the number of partitions."""
    return plan.excess, len(plan.partitions)


def _batch_sizes(most: int) -> list[int]:
    sizes = [most]
    while sizes[-1] // 2 >= SMALLEST_BATCH:
        sizes.append(sizes[-1] // 2)
    return sizes


def _partitions(
    blocks: Sequence[Block], elements: Callable[[Partition], float], queries: int, room: float
) -> list[Partition]:
    """As few runs of consecutive maps as fit into `room` bytes each; a map that alone does not is split by queries."""
    partitions: list[Partition] = []
    maps: list[tuple[Block, ...]] = []

    def close() -> None:
        if maps:
            partitions.append(Partition(joined(maps)))
            maps.clear()

    for part in by_map(blocks):
        if FLOAT * elements(Partition(part)) > room:
            close()
            partitions += _by_queries(part, elements, queries, room)
        else:
            if FLOAT * elements(Partition(joined([*maps, part]))) > room:
                close()
            maps.append(part)
    close()
    return partitions


def _by_queries(
    blocks: tuple[Block, ...], elements: Callable[[Partition], float], queries: int, room: float
) -> list[Partition]:
    """The fewest equal parts of the queries that fit; a query each if none do."""
    for parts in range(2, queries + 1):
        bounds = [k * queries // parts for k in range(parts + 1)]
        split = [Partition(blocks, first, stop) for first, stop in pairwise(bounds)]
        if parts == queries or all(FLOAT * elements(part) <= room for part in split):
            return split
    return [Partition(blocks)]


def _run_flops(shape: Shape, partition: Partition) -> float:
    """Of a forward pass, and a backward pass for activations down to the partition's first block."""
    above = 1 - shape.blocks.index(partition.blocks[0]) / len(shape.blocks)
    return (2 + 2 * above) * shape.parameters * shape.tokens


def _seen(partition: Partition) -> float:
    """The part of the tokens that a partition's blocks see on average, by their parameters."""
    parameters = _parameters(partition.blocks)
    return sum(b.seen * b.shape[0] * b.shape[1] for b in partition.blocks) / parameters if parameters else 1.0


def _parameters(blocks: Sequence[Block]) -> int:
    return sum(block.shape[0] * block.shape[1] for block in blocks)
