"""How many tokens a model can read: by its position embeddings if it has them, else by its config."""

import re
from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Under which keys configs say it, the most telling first; `seq_length` is BLOOM's too, whose ALiBi has no limit.
KEYS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "max_seq_length",
    "max_target_positions",
    "context_length",
    "seq_length",
)
WITHOUT_LIMIT = ("bloom",)  # as all models with `alibi`, except MPT, which lays out its biases beforehand
POSITIONS = re.compile(r"(^|[._])(wpe|pos|position|positions)([._]|$)")  # in the name of a table of positions


def context_length(model: PreTrainedModel) -> tuple[int, str] | None:
    """How many positions a model has, and what says so; None where nothing limits them.

    A table of learned positions counts more than the config: past its end there is nothing to look up.
    """
    tables = list(_tables(model))
    if tables:
        return min(tables)
    config = model.config.get_text_config(decoder=True)
    if config.model_type in WITHOUT_LIMIT or getattr(config, "alibi", False):
        return None
    for key in KEYS:
        if isinstance(length := getattr(config, key, None), int) and length > 0:
            return _stretched(config, length), key
    return None


def _tables(model: PreTrainedModel) -> Iterator[tuple[int, str]]:
    """(positions, name) of the tables of learned positions."""
    words = model.get_input_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module is not words and POSITIONS.search(name):
            # RoBERTa's kind counts positions from behind the padding's row, OPT's, a class of its own, from an offset.
            padded = type(module) is nn.Embedding and module.padding_idx is not None
            yield module.num_embeddings - (module.padding_idx + 1 if padded else getattr(module, "offset", 0)), name


def _stretched(config: PreTrainedConfig, length: int) -> int:
    """A length that the config says rotary positions were stretched from, stretched."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings") or length
    return max(length, int(factor * original)) if isinstance(factor, int | float) else length
