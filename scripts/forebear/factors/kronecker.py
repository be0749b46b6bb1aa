"""EK-FAC: covariances → eigenbasis → eigenvalues Λ → functions of the curvature.

For a block with gradient G_z = Σ_t g_t a_tᵀ (O×I) of sequence z's loss under labels drawn
from the model (George et al. 2018; Grosse et al. 2023, arXiv 2308.03296, section 2.2):

    A = E_t[a aᵀ]    S = E_t[g gᵀ]    Λ = E_z[(Q_Sᵀ G_z Q_A)²]    H ≈ (Q_S ⊗ Q_A) diag(Λ) (Q_S ⊗ Q_A)ᵀ

E_t is the mean over positions (real ones, except the last of each sequence), E_z the mean
over sequences, so Λ is in the units of the mean loss's Gauss-Newton matrix. Of an expert E_t is
the mean over the positions that were routed to it, and E_z over all sequences, for its gradient is
zero in those that send it nothing; a map that is used twice has each position twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from forebear.errors import ForebearError
from forebear.gradients.alignment import aligned, aligned_empty
from forebear.gradients.blocks import Block
from forebear.gradients.outer_products import Matrices, OuterProducts
from forebear.runtime.progress import progress

CHUNK_ELEMENTS = 1 << 20  # of vectors rotated at once: 4 MiB in float32


@dataclass(frozen=True)
class Covariances:
    """Second moments of what goes into and comes back from every linear map.

    Blocks of one map share its activation covariance, so that one is kept by module.
    """

    activation: Mapping[str, Tensor]  # module → A [I, I]
    gradient: Mapping[str, Tensor]  # block → S [O, O]
    # module → what part of the positions its means are over [1], where it does not see each once
    shares: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Eigenbasis:
    """Orthonormal eigenvectors (columns) of the covariances, with their eigenvalues."""

    activation: Mapping[str, Tensor]  # module → Q_A [I, I]
    gradient: Mapping[str, Tensor]  # block → Q_S [O, O]
    activation_values: Mapping[str, Tensor]  # module → [I], ascending
    gradient_values: Mapping[str, Tensor]  # block → [O], ascending
    shares: Mapping[str, Tensor] = field(default_factory=dict)  # as of the covariances


def eigenbasis_parts(covariances: Covariances, device: torch.device | str = "cpu") -> Iterator[Eigenbasis]:
    """Eigendecompositions of the symmetrised covariances, in float64 on a device, kept in their own precision.

    One matrix after the other, so that memory has to hold one.
    """
    yield Eigenbasis({}, {}, {}, {}, covariances.shares)
    names = [(kind, name) for kind in ("activation", "gradient") for name in getattr(covariances, kind)]
    for kind, name in progress(names, "eigenbasis", "matrix"):
        matrix = getattr(covariances, kind)[name]
        if not torch.isfinite(matrix).all():
            raise ForebearError(f"{name}: the covariance has values that are not finite; look for NaN in the model.")
        w, v = torch.linalg.eigh(((matrix + matrix.T) / 2).to(device, torch.float64))
        vectors, values = {name: v.to(matrix)}, {name: w.clamp_min(0).to(matrix)}
        yield Eigenbasis(vectors, {}, values, {}) if kind == "activation" else Eigenbasis({}, vectors, {}, values)


def compute_eigenbasis(covariances: Covariances, device: torch.device | str = "cpu") -> Eigenbasis:
    """The same, all in memory."""
    basis = Eigenbasis({}, {}, {}, {})
    for part in eigenbasis_parts(covariances, device):
        for kind, tensors in vars(part).items():
            getattr(basis, kind).update(tensors)
    return basis


def kfac_eigenvalues(basis: Eigenbasis, blocks: Sequence[Block], positions_per_sequence: float) -> dict[str, Tensor]:
    """K-FAC's Λ in the same units: positions per sequence times the product of both eigenvalues, [O, I].

    A map that does not see each position once has its own positions per sequence.
    """

    def positions(block: Block) -> float:
        share = basis.shares.get(block.module)
        return positions_per_sequence if share is None else positions_per_sequence * share.item()

    return {
        block.name: positions(block)
        * torch.outer(basis.gradient_values[block.name], basis.activation_values[block.module])
        for block in blocks
    }


def rotated(vectors: Tensor, basis: Tensor) -> Tensor:
    """Vectors [B, T, D] in a basis [D, D]."""
    rotated = aligned_empty(vectors, *vectors.shape)
    torch.mm(vectors.flatten(0, 1), basis, out=rotated.flatten(0, 1))
    return rotated


def apply_in_eigenbasis(vectors: Matrices, left: Tensor, right: Tensor, values: Tensor) -> Tensor:
    """Q_S [(Q_Sᵀ V Q_A) ⊙ values] Q_Aᵀ for every V of [Q, O, I]: a function of the curvature times V.

    A few at a time, so that temporaries are small and their memory is used again. Of matrices
    that were not formed yet the tokens' vectors are rotated, which saves half of the work.
    """
    rows, width = values.shape
    chunk = max(1, min(len(vectors), CHUNK_ELEMENTS // values.numel()))
    left, right, values = aligned(left), aligned(right), aligned(values)
    if isinstance(vectors, OuterProducts):
        vectors = OuterProducts(rotated(vectors.left, left), rotated(vectors.right, right))
    result = values.new_empty(len(vectors), rows, width)
    inner, outer = (aligned_empty(values, chunk, rows, width) for _ in range(2))
    for first in range(0, len(vectors), chunk):
        part, out = vectors[first : first + chunk], result[first : first + chunk]
        x, y = inner[: len(part)], outer[: len(part)]
        if isinstance(part, OuterProducts):
            part.formed(out=x)
        else:
            torch.mm(x.copy_(part).flatten(0, 1), right, out=y.flatten(0, 1))
            torch.matmul(left.T, y, out=x)
        torch.mm(x.mul_(values).flatten(0, 1), right.T, out=y.flatten(0, 1))
        out.copy_(torch.matmul(left, y, out=x))
    return result


def precondition(
    gradients: Mapping[str, Matrices],
    blocks: Sequence[Block],
    basis: Eigenbasis,
    functions: Mapping[str, Tensor],
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Apply f(H) to the gradients of every block, on a device that holds one block at a time.

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
        parts = (
            gradients[block.name],
            basis.gradient[block.name],
            basis.activation[block.module],
            functions[block.name],
        )
        result[block.name] = apply_in_eigenbasis(*(part.to(device) for part in parts)).to(gradients[block.name].device)
    return result
