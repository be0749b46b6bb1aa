"""What a loaded model must be for its influence to mean something, tried on a few tokens.

A model that sees the tokens after a position, or that does something else than its modules say, gives
scores like any other. So it is looked at before anything is computed: a sequence of a few tokens, the
same with other tokens at its end, and with padding; and the gradients that `capture` finds, beside those of
automatic differentiation.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from forebear.batches import Batch, collate
from forebear.blocks import Block
from forebear.capture import capture, working_dtype
from forebear.errors import ForebearError, shortened
from forebear.heads import is_classifier, position_logits
from forebear.passes import is_out_of_memory
from forebear.sequences import Example
from forebear.training import sequence_losses

LENGTH, PADDING = 8, 4  # tokens of a sequence, and what follows them
TRIES = 3  # other tokens, before a difference is believed: in low precision a near tie may choose other experts

# Differences of logits, in parts of their spread: of two sequences in one batch, which a causal model does not
# make at all and an untrained masked one makes of 0.002 (0.01 in bfloat16), and of a padded and an unpadded pass.
_TOLERANCES = {torch.float64: (1e-5, 1e-3), torch.float32: (1e-4, 1e-2), torch.float16: (1e-3, 0.3)}
_LOW_PRECISION = (4e-3, 0.3)
_GRADIENTS = {torch.float64: 1e-3, torch.float32: 2e-2}  # of a map's gradient, in parts of its length
_LOW_PRECISION_GRADIENTS = 0.3


def check_model(model: PreTrainedModel, blocks: Sequence[Block], max_length: int = LENGTH + PADDING) -> None:
    """Refuse a model whose gradients would not be what they are taken for.

    What has no gradient at all, such as the layers before an output layer of zeros, is printed.

    Args:
        max_length: tokens that the model can be run on.

    Raises:
        ForebearError: the model cannot be run on tokens alone, its logits are not finite, they depend on
            later tokens or on padding, or gradients are not those of automatic differentiation.
    """
    name, training = type(model).__name__, model.training
    model.eval()
    try:
        _check_logits(model, name, max_length)
        _check_gradients(model, blocks, name, max_length)
    except (ForebearError, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ForebearError(
            f"{name}: it cannot be run on tokens alone ({type(error).__name__}: {error}); take a decoder-only language "
            "model whose configuration and weights belong together."
        ) from error
    finally:
        model.train(training)


def probe_tokens(model: PreTrainedModel, sequences: int, length: int, seed: int) -> Tensor:
    """Random tokens [sequences, length] that the model has, without the first few, which are often special."""
    tokens = model.get_input_embeddings().weight.shape[0]
    tokens = min(tokens, getattr(model.config.get_text_config(decoder=True), "vocab_size", tokens))
    first = min(10, tokens // 2)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(first, tokens, (sequences, length), generator=generator)


@torch.no_grad()
def _check_logits(model: PreTrainedModel, name: str, max_length: int) -> None:
    length = max(2, min(LENGTH, max_length - PADDING))
    padding, kept = max(0, min(PADDING, max_length - length)), (length + 1) // 2  # the others change
    same_shape, padded = _TOLERANCES.get(model.dtype, _LOW_PRECISION)
    for seed in range(TRIES):
        first, other = probe_tokens(model, 2, length, seed)
        other = torch.where(torch.arange(length) < kept, first, torch.where(other == first, other - 1, other))
        alone = position_logits(model, first[None].to(model.device)).double()
        longer = nn.functional.pad(torch.stack([first, other]), (0, padding)).to(model.device)
        both = position_logits(model, longer).double()
        if not alone.isfinite().all() or not both[:, :length].isfinite().all():
            raise ForebearError(f"{name}: its logits are not finite; look for NaN and infinite values in its weights.")
        spread = alone.std().clamp_min(torch.finfo(torch.float32).tiny)
        leak = ((both[0, :kept] - both[1, :kept]).abs().max() / spread).item()
        change = ((both[0, :length] - alone[0]).abs().max() / spread).item()
        if leak <= same_shape and change <= padded:
            return
    if leak > same_shape:
        raise ForebearError(
            f"{name}: what it predicts at a token changes with the tokens after it (by {leak:.2g} of the logits' "
            f"spread), as in a masked language model; take a causal one{_decoder_hint(model)}."
        )
    raise ForebearError(
        f"{name}: what it predicts changes when padding follows the sequence (by {change:.2g} of the logits' spread), "
        "so batches would change the scores; take a causal language model, whose predictions depend on earlier tokens only."
    )


def _decoder_hint(model: PreTrainedModel) -> str:
    if getattr(model.config, "is_decoder", None) is False:
        return ", or set `is_decoder` to true in its config.json if it was trained as a decoder"
    return ""


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
            f"{name}: not one of its tracked maps has a gradient, so there is nothing to attribute; look for weights that "
            "are all zero, such as an output layer's, or layers that hide their graph, as reversible ones do."
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
