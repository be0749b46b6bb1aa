"""An ensemble: RelatIF scores at several chains of other seeds, averaged.

What a document does to an answer depends on the seed of the training; averaged over
chains of several seeds and parts of the documents, scores predict what a further training
would do better than those of any one chain, its own included (docs/accuracy.md).

The chains are small enough, or few enough, that one job does everything at all of them;
factors are fitted, used and forgotten.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.data.sequences import Example
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import Block
from forebear.queries.chain import Curvature, precondition_chain
from forebear.queries.gradients import query_gradients
from forebear.scores.pairwise import Request, pairwise_scores
from forebear.scores.self_influence import self_influence


@dataclass(frozen=True)
class ChainStage:
    """A stage of a trained chain: what its curvature is fitted on, and how it is inverted."""

    model: PreTrainedModel
    examples: Sequence[Example]
    damping: Damping
    pull: float = 0.0  # α


@dataclass(frozen=True)
class FactorOptions:
    """How factors are fitted; fields as the config's keys of these names."""

    seed: int
    batch_tokens: int
    label_samples: int


def chain_scores(
    stages: Sequence[ChainStage], queries: Sequence[Example], blocks: Sequence[Block], options: FactorOptions
) -> tuple[Tensor, float]:
    """The multi-stage EK-FAC scores of one chain over the root of the documents' self-influence.

    Args:
        stages: from the documents' stage to the last, at whose model the queries are measured.

    Returns:
        [N, Q], and the seconds that the pass of scoring took of all.
    """
    own, *later = [fit_curvature(stage, blocks, options) for stage in stages]
    gradients, _ = query_gradients(stages[-1].model, blocks, queries, options.batch_tokens)
    links = [(curvature, curvature.pull) for curvature in reversed(later)]
    columns = precondition_chain(gradients, blocks, [*links, (own, 1.0)])
    first = stages[0]
    scores = torch.empty(len(first.examples), len(queries))

    def write(_: str, places: np.ndarray, values: np.ndarray) -> None:
        scores[places] = torch.from_numpy(values)

    request = {"scores": Request("columns", frozenset(block.name for block in blocks))}
    seconds = pairwise_scores(
        first.model, blocks, first.examples, {"columns": columns}, request, options.batch_tokens, write
    )
    norms = self_influence(first.model, blocks, first.examples, own, options.batch_tokens).sqrt()
    return scores / norms[:, None].float(), seconds["scores"]


def fit_curvature(stage: ChainStage, blocks: Sequence[Block], options: FactorOptions) -> Curvature:
    """A stage's EK-FAC curvature, ready to be inverted."""
    arguments = (options.seed, options.batch_tokens, options.label_samples)
    basis = compute_eigenbasis(fit_covariances(stage.model, blocks, stage.examples, *arguments))
    eigenvalues = fit_eigenvalues(stage.model, blocks, stage.examples, basis, *arguments)
    return Curvature(basis, eigenvalues, stage.damping, stage.pull)
