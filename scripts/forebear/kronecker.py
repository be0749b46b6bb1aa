"""EK-FAC: covariances → eigenbasis → eigenvalues Λ → functions of the curvature.

For a block with gradient G_z = Σ_t g_t a_tᵀ (O×I) of sequence z's loss under labels drawn
from the model (George et al. 2018; Grosse et al. 2023, arXiv 2308.03296, section 2.2):

    A = E_t[a aᵀ]    S = E_t[g gᵀ]    Λ = E_z[(Q_Sᵀ G_z Q_A)²]    H ≈ (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ

E_t is the mean over positions (real ones, except the last of each sequence), E_z the mean
over sequences, so Λ is in the units of the mean loss's Gauss-Newton matrix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.blocks import Block
from forebear.capture import capture, sampled_labels
from forebear.datasets import Example, batches, number_of_positions
from forebear.errors import ForebearError
from forebear.progress import progress

CHUNK_ELEMENTS = 1 << 18  # of gradients formed at once: 1 MiB in float32

# Streams of random labels: Λ is fitted on other labels than the eigenbasis.
_COVARIANCE_STREAM, _EIGENVALUE_STREAM = 0, 1


@dataclass(frozen=True)
class Covariances:
    """Second moments of what goes into and comes back from every linear map.

    Blocks of one map share its activation covariance, so that one is kept by module.
    """

    activation: dict[str, Tensor]  # module → A [I, I]
    gradient: dict[str, Tensor]  # block → S [O, O]


@dataclass(frozen=True)
class Eigenbasis:
    """Orthonormal eigenvectors (columns) of the covariances, with their eigenvalues."""

    activation: dict[str, Tensor]  # module → Q_A [I, I]
    gradient: dict[str, Tensor]  # block → Q_S [O, O]
    activation_values: dict[str, Tensor]  # module → [I], ascending
    gradient_values: dict[str, Tensor]  # block → [O], ascending


def fit_covariances(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    seed: int,
    batch_tokens: int,
    label_samples: int = 1,
) -> Covariances:
    """Covariances over all positions of a data set, labels drawn from the model."""
    accumulate = _accumulator(model)
    activation: dict[str, Tensor] = {}
    gradient: dict[str, Tensor] = {}
    for sample in range(label_samples):
        labels = sampled_labels(examples, (seed, _COVARIANCE_STREAM, sample))
        for batch in progress(batches(examples, batch_tokens), "covariances", "batch"):
            captured = capture(model, blocks, batch, labels)
            for module, a in captured.activations.items():
                if sample == 0:  # activations do not depend on the labels
                    accumulate(activation, module, a.flatten(0, 1).T @ a.flatten(0, 1))
            for block in blocks:
                g = captured.block(block)[1].flatten(0, 1)
                accumulate(gradient, block.name, g.T @ g)
    positions = number_of_positions(examples)
    return Covariances(
        {module: total / positions for module, total in activation.items()},
        {block: total / (positions * label_samples) for block, total in gradient.items()},
    )


def compute_eigenbasis(covariances: Covariances) -> Eigenbasis:
    """Eigendecompositions of the symmetrised covariances, in float64, stored in their own precision."""

    def decompose(matrices: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        vectors, values = {}, {}
        for name, matrix in progress(list(matrices.items()), "eigenbasis", "matrix"):
            if not torch.isfinite(matrix).all():
                raise ForebearError(f"{name}: the covariance has values that are not finite; look for NaN in the model.")
            w, v = torch.linalg.eigh(((matrix + matrix.T) / 2).double())
            vectors[name], values[name] = v.to(matrix.dtype), w.clamp_min(0).to(matrix.dtype)
        return vectors, values

    activation, activation_values = decompose(covariances.activation)
    gradient, gradient_values = decompose(covariances.gradient)
    return Eigenbasis(activation, gradient, activation_values, gradient_values)


def fit_eigenvalues(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    basis: Eigenbasis,
    seed: int,
    batch_tokens: int,
    label_samples: int = 1,
) -> dict[str, Tensor]:
    """Λ of every block, [O, I]: second moments of per-sequence gradients in the eigenbasis."""
    accumulate = _accumulator(model)
    eigenvalues: dict[str, Tensor] = {}
    for sample in range(label_samples):
        labels = sampled_labels(examples, (seed, _EIGENVALUE_STREAM, sample))
        for batch in progress(batches(examples, batch_tokens), "eigenvalues", "batch"):
            captured = capture(model, blocks, batch, labels)
            rotated = {module: a @ basis.activation[module].to(a.dtype) for module, a in captured.activations.items()}
            for block in blocks:
                g = captured.block(block)[1]
                g = g @ basis.gradient[block.name].to(g.dtype)
                accumulate(eigenvalues, block.name, summed_squares(g, rotated[block.module]))
    return {block: total / (len(examples) * label_samples) for block, total in eigenvalues.items()}


def summed_squares(g: Tensor, a: Tensor) -> Tensor:
    """Σ_b (Σ_t g[b, t] a[b, t]ᵀ)² elementwise, [O, I], for g [B, T, O] and a [B, T, I].

    The gradients are formed a few at a time in one buffer that stays in the processor's
    cache, so that memory is read and written once, not for every sequence.
    """
    shape = (g.shape[2], a.shape[2])
    chunk = max(1, CHUNK_ELEMENTS // (shape[0] * shape[1]))
    total, buffer = g.new_zeros(shape), g.new_empty(chunk, *shape)
    for g_part, a_part in zip(g.split(chunk), a.split(chunk), strict=True):
        gradients = torch.bmm(g_part.transpose(1, 2), a_part, out=buffer[: len(g_part)])
        for gradient in gradients:
            total.addcmul_(gradient, gradient)
    return total


def kfac_eigenvalues(basis: Eigenbasis, blocks: Sequence[Block], positions_per_sequence: float) -> dict[str, Tensor]:
    """K-FAC's Λ in the same units: positions per sequence times the product of both eigenvalues, [O, I]."""
    return {
        block.name: positions_per_sequence
        * torch.outer(basis.gradient_values[block.name], basis.activation_values[block.module])
        for block in blocks
    }


def _accumulator(model: PreTrainedModel):
    """Sums at least in float32, whatever the model's precision."""
    precision = torch.promote_types(model.dtype, torch.float32)

    def accumulate(totals: dict[str, Tensor], name: str, term: Tensor) -> None:
        if name in totals:
            totals[name] += term
        else:
            totals[name] = term.to(precision)

    return accumulate


# Eigenvalue functions: f(Λ) that replaces the eigenvalues of a curvature's inverse.


def damped_inverse(eigenvalues: Tensor, damping: float) -> Tensor:
    """1 / (Λ + λ): the inverse of H + λ."""
    return 1 / (eigenvalues + damping)


def block_damping(eigenvalues: Tensor, relative: float | None, absolute: float | None) -> float:
    """λ of one block: `relative` times its mean eigenvalue, or `absolute`."""
    return absolute if relative is None else relative * eigenvalues.mean().item()


def apply_in_eigenbasis(vectors: Tensor, left: Tensor, right: Tensor, values: Tensor) -> Tensor:
    """Q_S [(Q_Sᵀ V Q_A) ⊙ values] Q_Aᵀ for V [..., O, I]: a function of the curvature times V."""
    rotated = left.T @ (vectors @ right)
    return left @ (rotated.mul_(values) @ right.T)


def precondition(
    gradients: Mapping[str, Tensor], blocks: Sequence[Block], basis: Eigenbasis, functions: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Apply f(H) to the gradients of every block.

    Args:
        gradients: block → [Q, O, I].
        functions: block → f(Λ) [O, I].

    Raises:
        ForebearError: a block has no factors.
    """
    result = {}
    for block in blocks:
        if block.name not in functions or block.name not in basis.gradient or block.module not in basis.activation:
            raise ForebearError(f"the block {block.name} has no curvature factors; fit them for the same blocks.")
        result[block.name] = apply_in_eigenbasis(
            gradients[block.name], basis.gradient[block.name], basis.activation[block.module], functions[block.name]
        )
    return result
