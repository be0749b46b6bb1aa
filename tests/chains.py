"""A chain of tiny models with its inverses and gradients, and its scores from explicitly formed Kronecker matrices."""

from dataclasses import replace

import numpy as np
import torch

from dense_gradients import sequence_gradients
from forebear.data.batches import collate
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.capture import capture
from forebear.gradients.outer_products import formed
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.queries.solve import SolverOptions

# Solvers go on until they have the solution.
OPTIONS = SolverOptions(
    queries=3,
    sequences=None,
    reference_tolerance=1e-10,
    tolerance=1e-10,
    iterations=5000,
    refinements=5000,
    rank=10_000,
    lissa_steps=100_000,
    lissa_sequences=1000,
)
PULLS = [0.0, 0.3, 0.7]
DAMPINGS = [Damping(relative=0.01), Damping(relative=0.02), Damping(absolute=0.005)]


class Chain:
    """Inverses, not scaled, document gradients and query gradients of consecutive stages."""

    def __init__(self, models, stage_examples, queries, split_heads):
        self.models, self.examples = models, stage_examples
        self.blocks = tracked_blocks(models[0], split_heads)
        self.inverses, self.documents = [], []
        for stage, (model, examples) in enumerate(zip(models, stage_examples, strict=True)):
            basis = compute_eigenbasis(fit_covariances(model, self.blocks, examples, stage, 40, label_samples=3))
            eigenvalues = fit_eigenvalues(model, self.blocks, examples, basis, stage, 40, label_samples=3)
            self.inverses.append(DampedInverse(basis, eigenvalues, DAMPINGS[stage], PULLS[stage]))
            captured = capture(model, self.blocks, collate(examples, range(len(examples))))
            self.documents.append({block.name: sequence_gradients(captured, block) for block in self.blocks})
        unformed = [query_gradients(model, self.blocks, queries, 40)[0] for model in models]
        self.queries = [{name: formed(part) for name, part in gradients.items()} for gradients in unformed]

    def scaled(self, stage, last):
        """The inverses from the last stage to the documents', as the score reads them."""
        later = [replace(inverse, scale=inverse.pull) for inverse in self.inverses[last:stage:-1]]
        return [*later, self.inverses[stage]]

    def scores(self, inverses, stage=0, last=1):
        """[N, Q], from the engine's preconditioned queries."""
        columns = apply_chain(self.queries[last], self.blocks, inverses)
        return contract(self.documents[stage], columns).numpy()


def contract(documents, columns):
    return sum(documents[name].flatten(1) @ columns[name].flatten(1).T for name in columns)


def dense_curvature(inverse, block):
    """H̃ = (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ + α + λ over the row-major elements of a block."""
    q = torch.kron(inverse.basis.gradient[block.name], inverse.basis.activation[block.module])
    eigenvalues = inverse.eigenvalues[block.name].flatten()
    damping = inverse.damping
    added = damping.absolute if damping.relative is None else damping.relative * eigenvalues.mean()
    return (q * eigenvalues) @ q.T + (inverse.pull + added) * torch.eye(len(q), dtype=q.dtype)


def dense_scores(chain, stage, last):
    """∇mᵀ [α_n H̃_n⁻¹] ··· [α_{s+1} H̃_{s+1}⁻¹] H̃_s⁻¹ ∇ℓ by dense solves, read from the right."""
    total = 0
    for block in chain.blocks:
        vectors = chain.documents[stage][block.name].flatten(1).T
        for s in range(stage, last + 1):
            scale = 1.0 if s == stage else chain.inverses[s].pull
            vectors = scale * torch.linalg.solve(dense_curvature(chain.inverses[s], block), vectors)
        total = total + (chain.queries[last][block.name].flatten(1) @ vectors).T
    return total.numpy()


def relative_difference(one, other):
    return np.linalg.norm(one - other) / np.linalg.norm(other)
