"""Activations and output gradients of a batch, at every tracked linear map.

This room knows how a model is run; it never forms a Kronecker factor or a score.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forebear.batches import IGNORED, Batch
from forebear.blocks import Block
from forebear.errors import ForebearError
from forebear.heads import position_logits
from forebear.memory import aligned_empty
from forebear.passes import in_batches
from forebear.sequences import Example
from forebear.training import check_losses, sequence_losses

Labels = Callable[[Tensor, Batch], Tensor]  # (logits [B, T, V or C], batch) → labels [B, T]
Objective = Callable[[Tensor, Tensor], Tensor]  # (logits [B, T, V or C], labels [B, T]) → [B]


@dataclass(frozen=True)
class Captured:
    """What one forward and backward pass leaves behind, by module.

    The gradient of sequence b's summed loss with respect to a map's weight is
    Σ_t gradients[b, t] activations[b, t]ᵀ. Activations end in a one where the map has a
    bias. Gradients are zero at the positions that carry none (padding, the last of a language
    model's sequence); activations are not.
    """

    activations: dict[str, Tensor]  # module → [B, T, I]
    gradients: dict[str, Tensor]  # module → [B, T, O]
    losses: Tensor  # [B]
    positions: Tensor  # [B, T] bool, as in the batch

    def block(self, block: Block) -> tuple[Tensor, Tensor]:
        """(activations [B, T, I], gradients [B, T, O]) of one block."""
        return self.activations[block.module], self.gradients[block.module][..., block.rows]


def observed_labels(logits: Tensor, batch: Batch) -> Tensor:
    """The labels of the data."""
    return batch.labels


def sampled_labels(examples: Sequence[Example], seed: Sequence[int]) -> Labels:
    """Labels drawn from the model at each target position, for the true Fisher.

    The draw inverts the distribution function at a uniform number that depends on the
    seed, the sequence and the position only, so that it is the same in every batching.
    """

    def draw(logits: Tensor, batch: Batch) -> Tensor:
        uniform = torch.zeros(batch.ids.shape, dtype=torch.float64)
        for row, index in enumerate(batch.indices.tolist()):
            length = len(examples[index].ids)
            uniform[row, :length] = torch.from_numpy(np.random.default_rng([*seed, index]).random(length))
        targets = batch.labels != IGNORED
        precision = torch.promote_types(logits.dtype, torch.float32)
        cumulative = logits.detach()[targets].softmax(-1, dtype=precision).cumsum(-1)
        wanted = uniform.to(logits.device, precision)[targets] * cumulative[:, -1]
        drawn = torch.searchsorted(cumulative, wanted[:, None], right=True).squeeze(1)
        labels = torch.full_like(batch.labels, IGNORED)
        labels[targets] = drawn.clamp_max(logits.shape[-1] - 1)
        return labels

    return draw


def working_dtype(model: PreTrainedModel) -> torch.dtype:
    """Of everything computed from a pass: float32 at least, though the pass itself may be in bfloat16."""
    return torch.promote_types(model.dtype, torch.float32)


def capture(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batch: Batch,
    labels: Labels = observed_labels,
    objective: Objective = sequence_losses,
) -> Captured:
    """Run a batch forward and backward; parameters need no gradients and get none.

    Only activation gradients are computed, which saves a third of an ordinary pass.

    Args:
        objective: what is differentiated, and what `losses` holds.
    """
    batch, dtype = batch.to(model.device), working_dtype(model)
    bias = {block.module: block.bias for block in blocks}
    with recorded(model, list(bias)) as (inputs, outputs), torch.enable_grad():
        logits = position_logits(model, batch.ids).to(model.device, dtype)
        if unused := [module for module in bias if module not in outputs]:
            raise ForebearError(f"{', '.join(unused)}: not used by the model, so they cannot be tracked.")
        losses = objective(logits, labels(logits, batch))
        check_losses(losses.detach(), batch.indices, "forward pass")
        gradients = torch.autograd.grad(losses.sum(), [outputs[module] for module in bias])
    activations, by_sequence = {}, {}
    for (module, has_bias), gradient in zip(bias.items(), gradients, strict=True):
        a = _by_sequence(inputs[module], batch, module).to(dtype)
        activations[module] = with_one(a) if has_bias else a
        by_sequence[module] = _by_sequence(gradient, batch, module).to(dtype)
    return Captured(activations, by_sequence, losses.detach(), batch.positions)


def captured_batches(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    examples: Sequence[Example],
    batches: int | Sequence[Sequence[int]],
    description: str,
    labels: Labels = observed_labels,
    objective: Objective = sequence_losses,
) -> Iterator[tuple[Batch, Captured]]:
    """`capture` over a data set; what it has captured of a batch lasts until the next is asked for.

    The other arguments and errors are those of `in_batches`.
    """
    run = in_batches(lambda batch: capture(model, blocks, batch, labels, objective), examples, batches, description)
    for batch, captured in run:
        yield batch, captured
        captured.activations.clear()  # or they would lie beside those of the next batch
        captured.gradients.clear()


def _by_sequence(vectors: Tensor, batch: Batch, module: str) -> Tensor:
    """[B, T, D] from what a map saw; some models (OPT's MLP) run all positions of a batch as [B·T, D]."""
    sequences, length = batch.ids.shape
    if vectors.numel() != sequences * length * vectors.shape[-1]:
        raise ForebearError(
            f"{module}: saw a tensor of shape {tuple(vectors.shape)} in a batch of {sequences} sequences of {length} "
            "tokens; only maps that see every position once can be tracked."
        )
    return vectors.reshape(sequences, length, -1)


def with_one(activations: Tensor) -> Tensor:
    """Activations [B, T, I] with a last column of ones, which the bias is multiplied by."""
    result = aligned_empty(activations, *activations.shape[:-1], activations.shape[-1] + 1)
    result[..., :-1] = activations
    result[..., -1] = 1
    return result


@contextmanager
def recorded(model: nn.Module, modules: Sequence[str]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Record inputs and outputs of modules while the block runs.

    The embedding's output is made to require a gradient, so that a graph exists although
    the parameters are frozen.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def record(module: str):
        def hook(_, args, output):
            if module in inputs:
                raise ForebearError(f"{module}: is used more than once in a pass, so it cannot be tracked.")
            inputs[module] = args[0].detach()
            outputs[module] = output

        return hook

    handles = [model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_())]
    handles += [model.get_submodule(m.replace("/", ".")).register_forward_hook(record(m)) for m in modules]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()
