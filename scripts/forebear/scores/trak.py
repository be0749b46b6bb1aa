"""TRAK: scores from randomly projected gradients of an ensemble (Park et al. 2023, arXiv 2303.14186).

A model is replaced by a linear one on the features φ(z) = Pᵀ∇f(z), for which leaving
documents out has a closed form. With the features Φ_i [N, k] of the documents at member i,

    score(z, x) = [mean_i q_i(z)] · mean_i φ_i(x)ᵀ (Φ_iᵀΦ_i)⁻¹ φ_i(z)        (equation 17)

f is the paper's output function for language models (section 5.2), the sum over target
tokens of log(p / (1 − p)) with p the probability of the right token: unlike the loss it
does not saturate where the model is sure. q is 1 − p, the loss's slope in f, averaged over
the target tokens. f rises when the loss falls, so score > 0 means proponent.

Gradients are those of the tracked blocks. P is made of random signs and is structured: a
block's gradient Σ_t g_t a_tᵀ is projected from both sides, and what blocks give is added
up, so P is never formed and costs less than the gradients do. (The authors' package
`traker` draws a dense P, whose product with every gradient takes N·k·parameters
operations, and has no structured one.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from forebear.artifacts.hdf5 import Attributes, create, open_checked
from forebear.data.batches import IGNORED, Batch
from forebear.data.sequences import Example
from forebear.gradients.blocks import Block, device_of
from forebear.gradients.capture import captured_batches, working_dtype
from forebear.models.heads import position_logits
from forebear.models.passes import in_batches

_PROJECTION_STREAM = 5


@dataclass(frozen=True)
class Member:
    """What TRAK keeps of one model of the ensemble; k features."""

    documents: Tensor  # [N, k]
    queries: Tensor  # [Q, k]
    errors: Tensor  # [N] q: mean probability of a wrong token


def token_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """log(p / (1 − p)) of the label at every position, [B, T]; 0 where there is none.

    Written as logit − logsumexp of the others, which does not lose the digits of 1 − p.
    """
    targets = labels != IGNORED
    right = labels.masked_fill(~targets, 0)[..., None]
    others = logits.scatter(-1, right, -torch.inf).logsumexp(-1)
    return (logits.gather(-1, right)[..., 0] - others).where(targets, 0)


def sequence_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """f of every sequence, [B]: its targets' margins, summed."""
    return token_margins(logits, labels).sum(1)


def projections(blocks: Sequence[Block], side: int, seed: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """block → (P_g [O, side], P_a [I, side]), random signs / √side, so that inner products keep their mean."""
    signs = {}
    for k, block in enumerate(blocks):
        generator = np.random.default_rng([*seed, _PROJECTION_STREAM, k])
        signs[block.name] = tuple(
            torch.from_numpy(generator.choice([-1.0, 1.0], (size, side)) / side**0.5) for size in block.shape
        )
    return signs


def projected_gradients(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    side: int,
    seed: Sequence[int],
    batch_tokens: int,
) -> Tensor:
    """φ of every sequence, [N, side²]: Σ over blocks of P_gᵀ [Σ_t g_t a_tᵀ] P_a, g and a those of f."""
    dtype, drawn = working_dtype(model), projections(blocks, side, seed)
    signs = {b.name: [sign.to(device_of(model, b.module), dtype) for sign in drawn[b.name]] for b in blocks}
    features = torch.zeros(len(examples), side * side, dtype=dtype)
    run = captured_batches(model, blocks, examples, batch_tokens, "projected gradients", objective=sequence_margins)
    for batch, captured in run:
        for block in blocks:
            a, g = captured.block(block)
            left, right = signs[block.name]
            features[batch.indices] += torch.bmm((g @ left).transpose(1, 2), a @ right).flatten(1).cpu()
    return features


@torch.no_grad()
def error_probabilities(model: PreTrainedModel, examples: Sequence[Example], batch_tokens: int) -> Tensor:
    """q of every sequence, [N]: the mean of 1 − p over its targets."""

    def mean_errors(batch: Batch) -> Tensor:
        batch = batch.to(model.device)
        targets = batch.labels != IGNORED
        wrong = torch.sigmoid(-token_margins(position_logits(model, batch.ids), batch.labels))
        return ((wrong * targets).sum(1) / targets.sum(1)).cpu()

    errors = torch.empty(len(examples), dtype=working_dtype(model))
    for batch, values in in_batches(mean_errors, examples, batch_tokens, "error probabilities"):
        errors[batch.indices] = values
    return errors


def ensemble_scores(members: Sequence[Member]) -> np.ndarray:
    """TRAK's scores [N, Q] of all documents.

    With fewer documents than features (Φᵀ Φ)⁻¹ is the pseudo-inverse.
    """
    scores = sum(_kernel(member) for member in members) / len(members)
    errors = sum(member.errors.double() for member in members) / len(members)
    return (errors[:, None] * scores).float().numpy()


def _kernel(member: Member) -> Tensor:
    """φ(z)ᵀ (ΦᵀΦ)⁻¹ φ(x), [N, Q]."""
    documents, queries = member.documents.double(), member.queries.double()
    return documents @ torch.linalg.pinv(documents.T @ documents, hermitian=True) @ queries.T


def write_members(path: str | Path, members: Sequence[Member], attributes: Attributes) -> None:
    with create(path, "TRAK features", attributes) as file:
        for k, member in enumerate(members):
            for name, tensor in vars(member).items():
                file[f"{k}/{name}"] = tensor.numpy()


def read_members(path: str | Path, expected: Attributes | None = None) -> list[Member]:
    with open_checked(path, "TRAK features", expected) as file:
        return [Member(**{name: torch.from_numpy(part[name][()]) for name in part}) for part in file.values()]
