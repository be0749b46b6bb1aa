"""A tiny model of every family of causal language models that the installed transformers has.

A family's configuration is made tiny by the names of its options; OPTIONS has what some need beyond that.
"""

import warnings

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 40
MOST_PARAMETERS = 5_000_000

# By what an option is called, whatever the family.
_SIZES = {
    16: "hidden_size hidden_size_global d_model n_embd embed_dim dim word_embed_proj_dim embedding_size dim_model "
    "lru_width",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_key_value_heads "
    "num_experts_per_tok num_experts_per_token moe_topk moe_k top_k_experts moe_top_k linear_num_key_heads mamba_expand",
    1: "encoder_layers num_encoder_layers depth n_group topk_group mamba_n_groups mamba_ngroups n_groups "
    "n_shared_experts first_k_dense_replace num_nextn_predict_layers",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_experts num_local_experts n_routed_experts "
    "moe_num_experts linear_num_value_heads linear_num_heads linear_head_dim linear_key_head_dim "
    "linear_value_head_dim mamba_d_state state_size "
    "ssm_state_size mamba_n_heads mamba_num_heads n_mamba_heads rotary_dim index_n_heads index_topk",
    8: "head_dim swa_head_dim rel_extent sliding_window_size moe_intermediate_size shared_expert_intermediate_size "
    "q_lora_rank kv_lora_rank qk_nope_head_dim "
    "qk_rope_head_dim v_head_dim mamba_d_head mamba_head_dim mamba_headdim chunk_size mamba_chunk_size index_head_dim "
    "expert_ffn_hidden_size ffn_hidden_size shared_experts_intermediate_size moe_shared_expert_intermediate_size "
    "hidden_size_per_layer_input laurel_rank dim_head attention_head_size dt_rank time_step_rank mamba_dt_rank",
    24: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner d_ff feed_forward_size dim_ff d_inner",
    64: "max_position_embeddings n_positions n_ctx max_seq_len",
    VOCABULARY: "vocab_size unpadded_vocab_size encoder_hash_byte_group_vocab vocab_size_per_layer_input",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

_DECODER = {"is_decoder": True}  # of families that are masked language models otherwise
MASKED = [
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
]
_LATENT = {"num_key_value_heads": 4}  # compressed attention has as many keys as queries
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_NOTE = {  # layers have sizes for themselves
    "per_layer_config": {},
    "layer_types": ["indexed_attention", "sliding_attention"],
    "head_dim": 16,
    **dict.fromkeys(["num_attention_heads", "num_key_value_heads"], 4),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"], 8),
}
OPTIONS: dict[str, dict] = {
    **dict.fromkeys(MASKED, _DECODER),
    **dict.fromkeys(
        [
            "axk1",
            "axk2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "longcat_flash",
            "minicpm3",
            "sarvam_mla",
            "youtu",
            "hy_v4",
        ],
        _LATENT,
    ),
    "deepseek_v2": {**_LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "helium": {"head_dim": 4, "num_key_value_heads": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 32},
    "mamba2": {"num_heads": 4, "expand": 2},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "roc_bert": {"is_decoder": True, "pronunciation_vocab_size": 16, "shape_vocab_size": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "blt": {
        f"{part}_config": {"head_dim": 4, "num_key_value_heads": 4}
        for part in ("patcher", "encoder", "decoder", "global")
    },
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(["full_attention", "sliding_attention"], _ROPE)},
    "dots3_note_text": _NOTE,
    "dots3_note": {"text_config": _NOTE},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_hidden_layers": 4},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "num_mem_blocks": 1,
    },
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
}


def tiny_config(family: str, **options) -> PreTrainedConfig:
    return _sized(CONFIG_MAPPING[family], **{**TOKENS, **OPTIONS.get(family, {}), **options})


def _sized(kind: type[PreTrainedConfig], **options) -> PreTrainedConfig:
    """A configuration whose options of the names above, and whose parts', are tiny."""
    try:
        default = kind()
    except Exception:  # it cannot be made without some option
        default = kind(**options)
    known = {**default.to_dict(), **(getattr(default, "attribute_map", None) or {})}
    sizes = {name: SIZES[name] for name in known.keys() & SIZES.keys() if isinstance(_value(default, name), int)}
    parts = {}
    for name in default.sub_configs:
        if isinstance(part := getattr(default, name, None), PreTrainedConfig):
            tokens = TOKENS if hasattr(part, "vocab_size") else {}
            parts[name] = _sized(type(part), **{**tokens, **options.get(name, {})})
    return kind(**{**sizes, **options, **parts})


def _value(config: PreTrainedConfig, name: str):
    try:
        return getattr(config, name, None)
    except Exception:  # an option that layers have for themselves
        return None


def tiny_model(family: str, dtype: torch.dtype = torch.float64, **options) -> PreTrainedModel:
    """A model whose weights are away from their initial values, run by transformers' plainest implementation."""
    config = tiny_config(family, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        assert size < MOST_PARAMETERS, f"{family}: {size:,} parameters are not tiny"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
    return model
