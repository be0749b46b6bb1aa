"""Whether a loaded model predicts from earlier tokens alone, tried on a few.

A masked language model sees the tokens after a position, and padding too, and gives numbers like any other. So
a short sequence is run beside one with other tokens at its end, and with padding after it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from forebear.errors import ForebearError
from forebear.models.heads import position_logits

LENGTH, PADDING = 8, 4  # tokens of a sequence, and what follows them
TRIES = 3  # other tokens, before a difference is believed: in low precision a near tie may choose other experts

# Differences of logits, in parts of their spread: of two sequences in one batch, which a causal model does not
# make at all and an untrained masked one makes of 0.002 (0.01 in bfloat16), and of a padded and an unpadded pass.
_TOLERANCES = {torch.float64: (1e-5, 1e-3), torch.float32: (1e-4, 1e-2), torch.float16: (1e-3, 0.3)}
_LOW_PRECISION = (4e-3, 0.3)


def check_causality(model: PreTrainedModel, max_length: int = LENGTH + PADDING) -> None:
    """Refuse a model whose predictions at a token depend on what follows it.

    Args:
        max_length: tokens that the model can be run on.

    Raises:
        ForebearError: the model cannot be run on tokens alone, its logits are not finite, or they depend on
            later tokens or on padding.
    """
    with probing(model):
        _check_logits(model, type(model).__name__, max_length)


@contextmanager
def probing(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout; what the model itself raises ends in a sentence."""
    training = model.training
    model.eval()
    try:
        yield
    except (ForebearError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ForebearError(
            f"{type(model).__name__}: it cannot be run on tokens alone ({type(error).__name__}: {error}); take a "
            "decoder-only language model whose configuration and weights belong together."
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
        "so batches would change the scores; take a causal language model, which predicts from earlier tokens only."
    )


def _decoder_hint(model: PreTrainedModel) -> str:
    if getattr(model.config, "is_decoder", None) is False:
        return ", or set `is_decoder` to true in its config.json if it was trained as a decoder"
    return ""
