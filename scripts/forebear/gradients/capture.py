"""Activations and output gradients of a batch, at every tracked linear map.

This room knows how a model is run; it never forms a Kronecker factor or a score.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from forebear.data.batches import IGNORED, Batch
from forebear.data.sequences import Example
from forebear.errors import ForebearError
from forebear.gradients.alignment import aligned_empty
from forebear.gradients.blocks import Block, parameters_of
from forebear.gradients.experts import fused_experts, is_of_experts, watched
from forebear.models.heads import position_logits
from forebear.models.losses import check_losses, sequence_losses
from forebear.models.passes import in_batches

Labels = Callable[[Tensor, Batch], Tensor]  # (logits [B, T, V or C], batch) → labels [B, T]
Objective = Callable[[Tensor, Tensor], Tensor]  # (logits [B, T, V or C], labels [B, T]) → [B]


@dataclass(frozen=True)
class Captured:
    """What one forward and backward pass leaves behind, by module.

    The gradient of sequence b's summed loss with respect to a map's weight is
    Σ_t gradients[b, t] activations[b, t]ᵀ. Activations end in a one where the map has a
    bias. Gradients are zero at the positions that carry none (padding, the last of a language
    model's sequence); activations are not.

    T is that of the batch, except for two kinds of maps. One that is used n times in a pass has
    n·T places; an expert has as many as the most tokens that a sequence sends there, at least
    one. Of these only positions that count are kept, each sequence's first, before zeros.
    """

    activations: dict[str, Tensor]  # module → [B, T, I]
    gradients: dict[str, Tensor]  # module → [B, T, O]
    losses: Tensor  # [B]
    positions: Tensor  # [B, T] bool, as in the batch
    own_positions: dict[str, Tensor] = field(default_factory=dict)  # module → [B, T] bool, of those two kinds

    def block(self, block: Block) -> tuple[Tensor, Tensor]:
        """(activations [B, T, I], gradients [B, T, O]) of one block."""
        return self.activations[block.module], self.gradients[block.module][..., block.rows]


@dataclass(frozen=True)
class Use:
    """One call of a linear map in a pass."""

    inputs: Tensor  # [..., I], without a graph
    version: int  # of the inputs' values, which the model must not write over
    output: GradientEdge  # whose gradient is the output's, whatever is written into that afterwards
    shape: torch.Size  # of the output, [..., O]
    dtype: torch.dtype
    tokens: Tensor | None  # [n] indices in the flattened batch, ascending, of the vectors; None: of all tokens in order


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

    Only activation gradients are computed, which saves a third of an ordinary pass. A map that the
    model does not use, or whose output does not reach the loss, has a gradient of zero.

    Args:
        objective: what is differentiated, and what `losses` holds.
    """
    batch, dtype = batch.to(model.device), working_dtype(model)
    bias = {block.module: block.bias for block in blocks}
    with recorded(model, list(bias)) as uses, torch.enable_grad():
        logits = position_logits(model, batch.ids).to(model.device, dtype)
        losses = objective(logits, labels(logits, batch))
        check_losses(losses.detach(), batch.indices, "forward pass")
        edges = [use.output for module in bias for use in uses[module]]
        reached = edges and losses.requires_grad
        found = iter(torch.autograd.grad(losses.sum(), edges, allow_unused=True) if reached else [None] * len(edges))
    captured = Captured({}, {}, losses.detach(), batch.positions)
    shapes, experts = _shapes(blocks), {block.module for block in blocks if block.share is not None}
    for module, has_bias in bias.items():
        gradients = [next(found) for _ in uses[module]]
        if any(use.inputs._version != use.version for use in uses[module]):
            raise ForebearError(f"{module}: the model writes over what it reads there, so it cannot be tracked.")
        if len(gradients) == 1 and uses[module][0].tokens is None:  # the usual case, which copies nothing
            a = _by_sequence(uses[module][0].inputs, batch, module)
            g = _by_sequence(_or_zeros(gradients[0], uses[module][0]), batch, module)
        else:
            a, g, counted = _gathered(uses[module], gradients, batch, module, shapes[module], module in experts)
            captured.own_positions[module] = counted
        a = a.to(dtype)
        captured.activations[module] = with_one(a) if has_bias else a
        captured.gradients[module] = g.to(dtype)
    return captured


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
        captured.own_positions.clear()


def _by_sequence(vectors: Tensor, batch: Batch, module: str) -> Tensor:
    """[B, T, D] from what a map saw; some models (OPT's MLP) run all positions of a batch as [B·T, D]."""
    sequences, length = batch.ids.shape
    turned = vectors.ndim == 3 and vectors.shape[:2] == (length, sequences) and length != sequences
    if turned or vectors.numel() != sequences * length * vectors.shape[-1]:
        raise ForebearError(
            f"{module}: saw a tensor of shape {tuple(vectors.shape)} in a batch of {sequences} sequences of {length} "
            "tokens; only maps that see every position once can be tracked."
        )
    return vectors.reshape(sequences, length, -1)


def _shapes(blocks: Sequence[Block]) -> dict[str, tuple[int, int]]:
    """module → (O, I) of what blocks cover of it, I without a bias."""
    outputs: dict[str, int] = {}
    for block in blocks:
        outputs[block.module] = max(block.rows.stop, outputs.get(block.module, 0))
    return {block.module: (outputs[block.module], block.shape[1] - block.bias) for block in blocks}


def _or_zeros(gradient: Tensor | None, use: Use) -> Tensor:
    return use.inputs.new_zeros(use.shape, dtype=use.dtype) if gradient is None else gradient


def _gathered(
    uses: Sequence[Use],
    gradients: Sequence[Tensor | None],
    batch: Batch,
    module: str,
    shape: tuple[int, int],
    expert: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a map saw of each sequence's counted positions, of all its uses, padded with zeros.

    Args:
        shape: (O, I) of a map without uses, whose vectors are all padding.

    Returns:
        activations [B, T, I], gradients [B, T, O], and which are no padding, [B, T].
    """
    sequences, length = batch.ids.shape
    positions, inputs, outputs = [], [], []
    for use, gradient in zip(uses, gradients, strict=True):
        tokens = torch.arange(sequences * length, device=use.inputs.device) if use.tokens is None else use.tokens
        if use.tokens is None:
            _by_sequence(use.inputs, batch, module)
        positions.append(tokens)
        inputs.append(use.inputs.flatten(0, -2))
        outputs.append(_or_zeros(gradient, use).flatten(0, -2))
    if not uses:
        empty = batch.labels.new_zeros(sequences, 1 if expert else length, dtype=torch.float32)
        return empty[..., None].expand(-1, -1, shape[1]), empty[..., None].expand(-1, -1, shape[0]), empty.bool()
    tokens = torch.cat(positions)
    kept = batch.positions.flatten().to(tokens.device)[tokens].nonzero().squeeze(1)
    kept = kept[(tokens[kept] // length).argsort(stable=True)]
    sequence = tokens[kept] // length
    counts = sequence.bincount(minlength=sequences)
    position = torch.arange(len(kept), device=tokens.device) - (counts.cumsum(0) - counts)[sequence]
    width = max(1, int(counts.max())) if expert else len(uses) * length

    def padded(vectors: list[Tensor]) -> Tensor:
        whole = torch.cat(vectors)
        result = whole.new_zeros(sequences, width, whole.shape[-1])
        result[sequence, position] = whole[kept]
        return result

    return padded(inputs), padded(outputs), torch.arange(width, device=tokens.device) < counts[:, None]


def with_one(activations: Tensor) -> Tensor:
    """Activations [B, T, I] with a last column of ones, which the bias is multiplied by."""
    result = aligned_empty(activations, *activations.shape[:-1], activations.shape[-1] + 1)
    result[..., :-1] = activations
    result[..., -1] = 1
    return result


def _beginning(output: Tensor) -> Tensor:
    """A tensor that has a graph, or is now where one begins; then a copy, which the model may write into."""
    return output if output.requires_grad or not torch.is_grad_enabled() else output.requires_grad_().clone()


@contextmanager
def recorded(model: PreTrainedModel, modules: Sequence[str]) -> Iterator[dict[str, list[Use]]]:
    """Record every use of linear maps while the block runs.

    A map is used too where another module has the same parameters. They may be frozen: a graph begins
    at the embedding's output, or at that of a map which nothing with a graph comes before.
    """
    uses: dict[str, list[Use]] = {module: [] for module in modules}
    experts = fused_experts(model, modules)
    paths = {id(module): path for path, module in experts.items()}

    def note(module: str, vectors: Tensor, output: Tensor, tokens: Tensor | None = None) -> Tensor:
        if not torch.is_grad_enabled():  # the model cuts the graph here, so this use has no gradient
            return output
        goes_on = _beginning(output)
        seen = vectors.detach()
        uses[module].append(Use(seen, seen._version, get_gradient_edge(output), output.shape, output.dtype, tokens))
        return goes_on

    def hook(module: str):
        return lambda _, args, kwargs, output: note(module, args[0] if args else kwargs["input"], output)

    def watch(parent: nn.Module, name: str, expert: int, vectors: Tensor, output: Tensor, tokens: Tensor) -> Tensor:
        module = f"{paths[id(parent)]}/{name}/{expert}" if id(parent) in paths else None
        return note(module, vectors, output, tokens) if module in uses else output

    plain = [module for module in modules if not is_of_experts(module, experts)]
    shared = {parameters_of(model.get_submodule(module.replace("/", "."))): module for module in plain}
    handles = [model.get_input_embeddings().register_forward_hook(lambda _, __, output: _beginning(output))]
    handles += [
        linear.register_forward_hook(hook(shared[parameters_of(linear)]), with_kwargs=True)
        for linear in model.modules()
        if isinstance(linear, nn.Linear | Conv1D) and parameters_of(linear) in shared
    ]
    try:
        with watched(model, experts.values(), watch):
            yield uses
    finally:
        for handle in handles:
            handle.remove()
