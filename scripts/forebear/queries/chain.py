"""The chain of stages: the inverses that a query meets, and the one loop that applies them.

    score(z, x) = ∇m(θ_n; x)ᵀ [α_n H̃_n⁻¹] ··· [α_{s+1} H̃_{s+1}⁻¹] H̃_s⁻¹ ∇ℓ_s(z; θ_s)

with H̃_1 = H_1 + λ_1 and H̃_s = H_s + α_s + λ_s (Bao et al. 2025, arXiv 2505.05017,
equation 12, with the α that the paper drops). The query is preconditioned once, from the
last stage to the documents'; the documents never are. All inverses are symmetric, so the
order in which they meet ∇m is the order of the product read from the left.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from forebear.errors import shortened
from forebear.factors.eigenvalue_functions import Damping, damped_inverse, remaining, unrolled_inverse
from forebear.factors.kronecker import Eigenbasis, precondition
from forebear.gradients.blocks import Block
from forebear.gradients.outer_products import Matrices, formed

Report = Mapping[str, Tensor]  # what an application took, by query: name → [Q]; empty where nothing is to be said


class Inverse(Protocol):
    """One factor of the chain, its scale included, as an operator on vectors of the parameters."""

    @property
    def name(self) -> str:
        """The curvature point, for progress and reports."""

    def apply(self, vectors: Mapping[str, Matrices], blocks: Sequence[Block]) -> tuple[dict[str, Tensor], Report]:
        """block → [Q, O, I] of some blocks, multiplied, and what it took."""


def apply_chain(
    gradients: Mapping[str, Matrices],
    blocks: Sequence[Block],
    inverses: Sequence[Inverse],
    report: Callable[[str, Report], None] = lambda name, taken: None,
) -> dict[str, Tensor]:
    """Apply every inverse to the query gradients, the first one first; none leaves them as they are.

    Args:
        gradients: block → ∇m [Q, O, I].
        inverses: from the last stage to the documents'.
        report: is told the name of every inverse and what its application took.

    Returns:
        block → [Q, O, I], in the parameter basis.
    """
    vectors = dict(gradients)
    for inverse in inverses:
        vectors, taken = inverse.apply(vectors, blocks)
        report(inverse.name, taken)
    return {block: formed(matrices) for block, matrices in vectors.items()}


@dataclass(frozen=True)
class DampedInverse:
    """scale · (H + α + λ)⁻¹ with the H of EK-FAC, or of K-FAC, which differs in Λ alone."""

    basis: Eigenbasis
    eigenvalues: Mapping[str, Tensor]  # block → Λ [O, I], never written to
    damping: Damping
    pull: float = 0.0  # α_s, which is part of H̃_s for every stage but the first
    scale: float = 1.0  # α_s for the stages after the documents', 1 for the documents' own
    name: str = ""
    device: torch.device | str = "cpu"  # where the products are computed

    def added(self, eigenvalues: Tensor) -> float:
        """α + λ of the block with these eigenvalues."""
        return self.pull + self.damping.of(eigenvalues)

    def is_empty(self, eigenvalues: Tensor) -> bool:
        """Whether a block has neither eigenvalues nor anything that is added to them.

        Where all its gradients are zero (a map that is not used, an expert that no document reached, the
        layers before an output layer of zeros) so is Λ, and with it a relative λ.
        """
        return self.added(eigenvalues) == 0 and not eigenvalues.any()

    def functions(self, blocks: Sequence[Block]) -> dict[str, Tensor]:
        """block → scale / (Λ + α + λ), [O, I], of those blocks that have eigenvalues.

        It is 0 where there is nothing to invert, as the pseudo-inverse is: no document has a gradient
        there that it could meet. The names of such blocks are printed.
        """
        functions, empty = {}, []
        for block in blocks:
            if block.name not in self.eigenvalues:
                continue
            eigenvalues = self.eigenvalues[block.name]
            if self.is_empty(eigenvalues):
                empty.append(block.name)
                functions[block.name] = torch.zeros_like(eigenvalues)
            else:
                functions[block.name] = self.scale * damped_inverse(eigenvalues, self.added(eigenvalues))
        if empty:
            print(
                f"no curvature, so no part in the scores: {len(empty)} of {len(functions)} blocks: {shortened(empty)}"
            )
        return functions

    def apply(self, vectors: Mapping[str, Matrices], blocks: Sequence[Block]) -> tuple[dict[str, Tensor], Report]:
        return precondition(vectors, blocks, self.basis, self.functions(blocks), self.device), {}


@dataclass(frozen=True)
class SourceSegment:
    """A stage as SOURCE sees it: gradient descent for `time` on a quadratic loss (Bae et al. 2024, arXiv 2405.12186).

    A chain of these, one segment a stage, is section 3's

        score(z, x) = ∇m(θ_n; x)ᵀ e^(−t_n H_n) ··· e^(−t_{s+1} H_{s+1}) (1 − e^(−t_s H_s)) H_s⁻¹ ∇ℓ_s(z; θ_s)

    In place of optima and pulls: what a document did to θ_s by the end of its stage, and
    what the later stages have left of it. Curvatures are taken where the stages ended.
    """

    basis: Eigenbasis
    eigenvalues: Mapping[str, Tensor]  # block → Λ [O, I]
    time: float  # η̄K: mean learning rate times steps
    later: bool  # after the documents' stage
    name: str = ""
    device: torch.device | str = "cpu"  # where the products are computed

    def apply(self, vectors: Mapping[str, Matrices], blocks: Sequence[Block]) -> tuple[dict[str, Tensor], Report]:
        function = remaining if self.later else unrolled_inverse
        values = {block.name: self.eigenvalues[block.name] for block in blocks if block.name in self.eigenvalues}
        functions = {block: function(value, self.time) for block, value in values.items()}
        return precondition(vectors, blocks, self.basis, functions, self.device), {}


def training_time(record: Mapping[str, float], adam: bool = True) -> float:
    """t of a stage from its training record: η̄ K, mean learning rate times steps.

    Gradient flow for t moves the parameters by t times the gradient. AdamW divides the
    gradient by √v̂ before it moves, so with `adam` the time is divided by its mean.
    """
    time = record["mean_learning_rate"] * record["steps"]
    return time / record["adam_scale"] if adam else time


def default_pull(record: Mapping[str, float]) -> float:
    """α of a stage from its training record: 1/t, with AdamW's t.

    A proximity term of this strength matches gradient flow for t to first order (Bae et al.
    2024, arXiv 2405.12186, section 3).
    """
    return 1 / training_time(record)
