"""The context of a model is found under whatever name, and is where the model really ends."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edited_checkpoints import SIZES
from forebear.errors import ForebearError
from forebear.models.checkpoints import check_context
from forebear.models.contexts import context_length

CONTEXTS = {
    "gpt2": ({"n_positions": 24}, 24, "transformer.wpe"),
    "gpt_neox": ({"max_position_embeddings": 24}, 24, "max_position_embeddings"),
    "opt": (
        {"max_position_embeddings": 24, "word_embed_proj_dim": 8, "ffn_dim": 16},
        24,
        "model.decoder.embed_positions",
    ),
    "openai-gpt": ({"n_positions": 24, "n_embd": 8, "n_layer": 2, "n_head": 2}, 24, "transformer.positions_embed"),
    "mpt": ({"max_seq_len": 24, "d_model": 8, "n_layers": 2, "n_heads": 2}, 24, "max_seq_len"),
    "gpt_bigcode": ({"n_positions": 24}, 24, "transformer.wpe"),
    "roberta": ({"max_position_embeddings": 26, "is_decoder": True}, 24, "roberta.embeddings.position_embeddings"),
    "bloom": ({"seq_length": 24}, None, None),
    "falcon": ({"alibi": True}, None, None),
}


@pytest.mark.parametrize("kind", CONTEXTS)
def test_the_context_is_found_and_holds(kind: str):
    """One token more than the context fails in the model, unless its positions are computed."""
    options, length, name = CONTEXTS[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **options}))
    assert context_length(model) == (None if length is None else (length, name))
    check_context(model, length or 10_000)
    model(torch.ones(1, length or 64, dtype=torch.long) * 5)
    if length is not None:
        with pytest.raises(ForebearError, match=rf"`max_length` is {length + 1}, but the model has {length} positions"):
            check_context(model, length + 1)
        if kind != "gpt_neox":
            with pytest.raises((IndexError, RuntimeError)):
                model(torch.ones(1, length + 1, dtype=torch.long) * 5)


@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 32),
        ({"rope_type": "linear", "factor": 4.0}, 128),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 4}
         | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}, 32),
    ],
)  # fmt: skip
def test_stretched_positions_count_as_far_as_they_were_stretched(scaling: dict | None, length: int):
    options = {} if scaling is None else {"rope_parameters": {"rope_theta": 1e4, **scaling}}
    config = AutoConfig.for_model("llama", **SIZES, max_position_embeddings=32, **options)
    assert context_length(AutoModelForCausalLM.from_config(config)) == (length, "max_position_embeddings")
