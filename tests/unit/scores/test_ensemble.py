"""The scores of one chain of an ensemble against dense curvatures and gradients."""

import pytest
import torch

from chains import DAMPINGS, PULLS, dense_curvature
from conftest import parameter_gradients, unpadded_loss
from forebear.gradients.blocks import tracked_blocks
from forebear.scores.ensemble import ChainStage, FactorOptions, chain_scores, fit_curvature

OPTIONS = FactorOptions(seed=3, batch_tokens=40, label_samples=2)


@pytest.mark.parametrize("first", [0, 1])
def test_a_chains_scores_equal_dense_kronecker_matrices(models, stage_examples, queries, first):
    """Documents of the first stage of three and of the second, whose own curvature has a pull too."""
    blocks = tracked_blocks(models[0])
    stages = [ChainStage(*parts) for parts in zip(models, stage_examples, DAMPINGS, PULLS, strict=True)][first:]
    actual, seconds = chain_scores(stages, queries, blocks, OPTIONS)
    documents = [
        parameter_gradients(models[first], blocks, unpadded_loss(models[first], z)) for z in stages[0].examples
    ]
    measured = [parameter_gradients(models[-1], blocks, unpadded_loss(models[-1], x)) for x in queries]
    curvatures = [fit_curvature(stage, blocks, OPTIONS) for stage in stages]
    scores, own = 0, 0
    for block in blocks:
        g, vectors = (torch.stack([one[block.name].flatten() for one in of]) for of in (documents, measured))
        for curvature in reversed(curvatures[1:]):
            vectors = curvature.pull * torch.linalg.solve(dense_curvature(curvature, block), vectors.T).T
        solved = torch.linalg.solve(dense_curvature(curvatures[0], block), g.T).T
        scores, own = scores + solved @ vectors.T, own + (solved * g).sum(1)
    torch.testing.assert_close(actual, (scores / own.sqrt()[:, None]).float(), rtol=1e-5, atol=1e-7)
    assert seconds > 0
