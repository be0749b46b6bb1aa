"""An ensemble: RelatIF scores at several chains of other seeds, averaged.

What a document does to an answer depends on the seed of the training; averaged over
chains of several seeds and parts of the documents, scores predict what a further training
would do better than those of any one chain, its own included (docs/accuracy.md).

The chains are small enough, or few enough, that one job does everything at all of them;
factors are fitted, used and forgotten.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from forebear.artifacts.manifests import read_manifest
from forebear.data.sequences import Example
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import Block
from forebear.gradients.point import open_point
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.queries.open_chain import pull_of
from forebear.scores.pairwise import Request, pairwise_scores
from forebear.scores.self_influence import normalised, self_influence


@dataclass(frozen=True)
class ChainStage:
    """A stage of a trained chain: what its curvature is fitted on, and how it is inverted."""

    model: PreTrainedModel
    examples: Sequence[Example]
    damping: Damping
    pull: float = 0.0  # α


@dataclass(frozen=True)
class Chain:
    """A trained chain, and the queries at its end."""

    stages: Sequence[ChainStage]  # from the documents' stage to the last
    queries: Sequence[Example]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class FactorOptions:
    """How factors are fitted; fields as the config's keys of these names."""

    seed: int
    batch_tokens: int
    label_samples: int


def open_chain(
    manifests: Sequence[Path], links: Sequence[Mapping], records: Sequence[str], queries: str, loading: Mapping
) -> Chain:
    """A chain, opened from its stages' manifests, what the config says of their inverses, and their records.

    Args:
        links: as of `queries.open_chain.open_inverse`.
        loading: arguments of `open_point`.
    """
    stages = []
    for manifest, link, part in zip(manifests, links, records, strict=True):
        point, pull = open_point(manifest, part, **loading), pull_of(link, read_manifest(manifest))
        stages.append(ChainStage(point.model, point.examples, Damping(**link["damping"]), pull))
    last = open_point(manifests[-1], queries, **loading, end=False)
    return Chain(stages, last.examples, last.blocks)


def mean_scores(chains: Iterable[Chain], options: FactorOptions) -> tuple[np.ndarray, float]:
    """The mean of the chains' scores [N, Q], and the seconds that all passes of scoring took.

    Args:
        chains: each is opened, and scored at, before the next.
    """
    scores, seconds = zip(*(chain_scores(chain, options) for chain in chains), strict=True)
    return np.mean(scores, axis=0, dtype=np.float64).astype(np.float32), sum(seconds)


def chain_scores(chain: Chain, options: FactorOptions) -> tuple[np.ndarray, float]:
    """The multi-stage EK-FAC scores of one chain over the root of the documents' self-influence.

    Returns:
        [N, Q], and the seconds that the pass of scoring took of all.
    """
    first, blocks = chain.stages[0], chain.blocks
    own, *later = [fit_inverse(stage, blocks, options) for stage in chain.stages]
    gradients, _ = query_gradients(chain.stages[-1].model, blocks, chain.queries, options.batch_tokens)
    inverses = [*(replace(inverse, scale=inverse.pull) for inverse in reversed(later)), own]
    columns = apply_chain(gradients, blocks, inverses)
    scores = np.empty((len(first.examples), len(chain.queries)), np.float32)

    def write(_: str, indices: np.ndarray, values: np.ndarray) -> None:
        scores[indices] = values

    request = {"scores": Request("columns", frozenset(block.name for block in blocks))}
    seconds = pairwise_scores(
        first.model, blocks, first.examples, {"columns": columns}, request, options.batch_tokens, write
    )
    influence = self_influence(first.model, blocks, first.examples, own, options.batch_tokens)
    return normalised(scores, influence.numpy()), seconds["scores"]


def fit_inverse(stage: ChainStage, blocks: Sequence[Block], options: FactorOptions) -> DampedInverse:
    """A stage's EK-FAC inverse, not scaled."""
    arguments = (options.seed, options.batch_tokens, options.label_samples)
    basis = compute_eigenbasis(fit_covariances(stage.model, blocks, stage.examples, *arguments))
    eigenvalues = fit_eigenvalues(stage.model, blocks, stage.examples, basis, *arguments)
    return DampedInverse(basis, eigenvalues, stage.damping, stage.pull)
