"""What a loaded model must be for its influence to mean something, tried on a few tokens.

Beside `causality` that is: the gradients that `capture` finds are those of automatic differentiation. A model
may do something else than its modules say, and its scores look like any other's.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from forebear.data.batches import Batch, collate
from forebear.data.sequences import Example
from forebear.errors import ForebearError, shortened
from forebear.gradients.blocks import Block
from forebear.gradients.capture import capture, working_dtype
from forebear.models.causality import LENGTH, PADDING, TRIES, check_causality, probe_tokens, probing
from forebear.models.heads import is_classifier, position_logits
from forebear.models.losses import sequence_losses

_GRADIENTS = {torch.float64: 1e-3, torch.float32: 2e-2}  # of a map's gradient, in parts of its length
_LOW_PRECISION_GRADIENTS = 0.3


def check_model(model: PreTrainedModel, blocks: Sequence[Block], max_length: int = LENGTH + PADDING) -> None:
    """Refuse a model whose gradients would not be what they are taken for.

    What has no gradient at all, such as the layers before an output layer of zeros, is printed.

    Args:
        max_length: tokens that the model can be run on.

    Raises:
        ForebearError: as `check_causality`, or gradients are not those of automatic differentiation.
    """
    check_causality(model, max_length)
    with probing(model):
        _check_gradients(model, blocks, type(model).__name__, max_length)


def _check_gradients(model: PreTrainedModel, blocks: Sequence[Block], name: str, max_length: int) -> None:
    """Two sequences of different lengths in one batch, against automatic differentiation of each alone.

    Of the maps that have the same place in every layer one is looked at, and no expert's: those are run by
    `experts`, so that the losses show whether they are run rightly.
    """
    examples = _probe_examples(model, max(2, min(LENGTH, max_length)))
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    experts = {block.module for block in blocks if block.share is not None}
    sizes = {module: g.square().sum().sqrt().item() for module, g in captured.gradients.items()}
    largest, tolerance = max(sizes.values()), _GRADIENTS.get(model.dtype, _LOW_PRECISION_GRADIENTS)
    silent = [module for module, size in sizes.items() if size == 0 and module not in experts]
    kinds = {re.sub(r"\d+", "*", module): module for module, size in reversed(sizes.items()) if size}
    chosen = [module for module in [*kinds.values(), *silent[:TRIES]] if module not in experts]
    for row, example in enumerate(examples):
        loss, expected = _true_gradients(model, chosen, collate([example], [0]))
        if abs(captured.losses[row].item() - loss) > tolerance * abs(loss):
            raise ForebearError(
                f"{name}: the loss of a sequence is {captured.losses[row].item():.4g} in a batch and {loss:.4g} alone, "
                "so scores would depend on the batches; take a causal language model of transformers' own."
            )
        for module, gradient in expected.items():
            found = (captured.gradients[module][row].T @ captured.activations[module][row])[:, : gradient.shape[1]]
            difference = (found.double() - gradient).norm().item()
            if difference > tolerance * max(gradient.norm().item(), tolerance * largest):
                raise ForebearError(
                    f"{name}: the gradient of {module} is not what its inputs and outputs say, so the model uses its "
                    "weight in another way than by calling it (fused kernels do); run the model without them."
                )
    if not largest:
        raise ForebearError(
            f"{name}: not one of its tracked maps has a gradient, so there is nothing to attribute; look for "
            "weights that are all zero, such as an output layer's, or layers that hide their graph."
        )
    if silent:
        maps = f"{len(silent)} of {len(sizes)} linear maps"
        print(f"{maps} have no gradient, and so no part in scores: {shortened(silent)}")


def _probe_examples(model: PreTrainedModel, length: int) -> list[Example]:
    """Two sequences whose targets are all their tokens, or the first class."""
    lengths = [length, max(2, length - 2)]
    tokens = [ids[:n] for ids, n in zip(probe_tokens(model, 2, length, seed=0), lengths, strict=True)]
    return [Example(ids, len(ids), 0) if is_classifier(model) else Example(ids, 1) for ids in tokens]


def _true_gradients(model: PreTrainedModel, modules: Sequence[str], batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The loss of one sequence, and the gradients [O, I] of some weights by automatic differentiation."""
    maps = {module: model.get_submodule(module.replace("/", ".")) for module in modules}
    weights = [linear.weight for linear in maps.values()]
    batch = batch.to(model.device)
    with _differentiable(weights), torch.enable_grad():
        logits = position_logits(model, batch.ids).to(model.device, working_dtype(model))
        (loss,) = sequence_losses(logits, batch.labels)
        found = [None] * len(weights)
        if weights and loss.requires_grad:
            found = torch.autograd.grad(loss, weights, allow_unused=True)
    gradients = {}
    for (module, linear), gradient in zip(maps.items(), found, strict=True):
        gradient = torch.zeros_like(linear.weight) if gradient is None else gradient
        gradients[module] = (gradient.T if isinstance(linear, Conv1D) else gradient).double()
    return loss.item(), gradients


@contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
