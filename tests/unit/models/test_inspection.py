"""A checkpoint that somebody brings is right, or ends in one sentence: files, config, weights, classes, context."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    Gemma3Config,
    LlavaConfig,
    T5Config,
)

from edited_checkpoints import LFS, SIZES, classifier, edited_config, edited_weights, opened, pickled, refused
from forebear.models.heads import position_logits
from published import byte_level_tokenizer, tiny_checkpoint

# The class is decided in one place


@pytest.mark.parametrize("named", [True, False], ids=["named", "unnamed"])
@pytest.mark.parametrize("as_pickle", [True, False], ids=["pickle", "safetensors"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_a_classifier_is_one_however_it_was_saved(tmp_path, kind: str, as_pickle: bool, named: bool):
    folder = tmp_path / "published"
    model = classifier(folder, kind)
    if as_pickle:
        pickled(folder)
    if not named:
        edited_config(folder, architectures=None)
    found = opened(folder)
    assert type(found) is type(model)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(position_logits(found, ids)[:, -1], model(ids).logits)


@pytest.mark.parametrize("as_pickle", [True, False], ids=["pickle", "safetensors"])
def test_a_config_that_names_another_class_than_the_weights_is_refused(tmp_path, as_pickle: bool):
    """GPT-2's language model shares its head with the embedding, so that no weight of it is missing."""
    for name, wrong, words in (
        ("classifier", "GPT2LMHeadModel", r"no place for the weights score\.weight; config\.json is not that"),
        ("language", "GPT2ForSequenceClassification", r"has no weights for score\.weight"),
    ):
        folder = tmp_path / name
        classifier(folder, "gpt2") if name == "classifier" else tiny_checkpoint(folder, "gpt2")
        edited_config(folder, architectures=[wrong])
        if as_pickle:
            pickled(folder)
        refused(folder, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"num_labels": 1}, "1 outputs for regression"), ({"problem_type": "multi_label_classification"}, "multi_label")],
)
def test_a_head_without_a_cross_entropy_over_classes_is_refused(tmp_path, options: dict, words: str):
    classifier(tmp_path / "reward", **options)
    refused(tmp_path / "reward", words)


# Every weight used, and every weight present


@pytest.mark.parametrize("as_pickle", [True, False], ids=["pickle", "safetensors"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt", "bloom", "mistral"])
def test_a_config_of_fewer_or_more_layers_than_the_weights_is_refused(tmp_path, kind: str, as_pickle: bool):
    for layers, words in ((1, "with 1 layers by config.json, has no place for the weights"), (3, "has no weights for")):
        folder = tiny_checkpoint(tmp_path / str(layers), kind)
        edited_config(folder, **{"n_layer" if kind in ("gpt2", "bloom") else "num_hidden_layers": layers})
        if as_pickle:
            pickled(folder)
        refused(folder, words)


def test_a_weight_of_another_shape_is_refused_with_both_shapes(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    edited_config(folder, intermediate_size=32)
    refused(
        folder, r"down_proj\.weight has the shape \[8, 16\], but config\.json makes it \[8, 32\] .*6 weights differ"
    )


def test_weights_that_no_model_has_a_place_for_are_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "bias", "llama")
    edited_weights(folder, lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(8)}))
    refused(folder, r"no place for the weights model\.layers\.0\.self_attn\.q_proj\.bias")
    folder = tiny_checkpoint(tmp_path / "wrapped", "llama")
    edited_weights(folder, lambda w: [w.update({f"module.{name}": w.pop(name)}) for name in list(w)])
    refused(folder, r"has no weights for .* \(and has module\.")


LEFTOVERS = {
    "gpt2": {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8)}
    | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
    "gpt_neox": {"gpt_neox.layers.1.attention.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool)}
    | {"gpt_neox.layers.1.attention.masked_bias": torch.tensor(-1e9)}
    | {"gpt_neox.layers.1.attention.rotary_emb.inv_freq": torch.ones(2)},
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)},
    "opt": {"model.decoder.embed_positions._float_tensor": torch.ones(1)},
    "mistral": {"v_head.summary.weight": torch.ones(1, 8), "v_head.summary.bias": torch.ones(1)},
}


@pytest.mark.parametrize("kind", LEFTOVERS)
def test_what_old_versions_saved_beside_the_weights_is_no_reason_to_refuse(tmp_path, kind: str, capsys):
    folder = tiny_checkpoint(tmp_path / "model", kind)
    plain = opened(folder).state_dict()
    edited_weights(folder, lambda w: w.update(LEFTOVERS[kind]))
    weights = opened(folder).state_dict()
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    assert ("is a value head" in capsys.readouterr().out) == (kind == "mistral")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_tied_head_that_is_saved_too_is_used(tmp_path, kind: str):
    folder = tiny_checkpoint(tmp_path / "model", kind)
    words, head = {"gpt2": "transformer.wte.weight", "llama": "model.embed_tokens.weight"}[kind], "lm_head.weight"
    edited_config(folder, tie_word_embeddings=True)
    edited_weights(folder, lambda w: w.update({head: w[words].clone()}))
    model = opened(folder)
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    pickled(folder)
    assert torch.equal(opened(folder).lm_head.weight, model.lm_head.weight)


# Damaged, packed and misnamed weights


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda whole: whole[:-100], r"model\.safetensors: is cut short or damaged .*; fetch or save it again"),
        (lambda whole: whole[:50], "is cut short or damaged"),
        (lambda whole: b"\xff" * 200, "is cut short or damaged"),
        (lambda whole: b"", r"model\.safetensors: is empty"),
        (lambda whole: LFS.encode(), r"model\.safetensors: is a Git LFS pointer .*`git lfs pull`"),
    ],
    ids=["tail", "head", "noise", "empty", "pointer"],
)
def test_damaged_safetensors_are_named(tmp_path, content: Callable[[bytes], bytes], words: str):
    folder = tiny_checkpoint(tmp_path / "model")
    file = folder / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    refused(folder, words)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.write_text(LFS), "is a Git LFS pointer"),
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: file.write_bytes(file.read_bytes()[:300]), "cannot be read as plain weights"),
        (lambda file: torch.save({"model": {"a": torch.ones(2)}, "step": 3}, file), "cannot be read as plain weights"),
        (lambda file: torch.save([torch.ones(2)], file), "cannot be read as plain weights"),
    ],
    ids=["pointer", "empty", "cut", "nested", "list"],
)
def test_damaged_pickles_are_named(tmp_path, write: Callable[[Path], object], words: str):
    folder = tiny_checkpoint(tmp_path / "model", pickled=True)
    write(folder / "pytorch_model.bin")
    refused(folder, rf"pytorch_model\.bin: {words}")


def test_shards_are_all_needed_and_a_single_file_goes_before_them(tmp_path):
    folder = tiny_checkpoint(tmp_path / "shards", "llama", shard_size="8KB")
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shutil.copytree(folder, tmp_path / "both")
    shutil.copy(tiny_checkpoint(tmp_path / "other", "llama", seed=1) / "model.safetensors", tmp_path / "both")
    other = load_file(tmp_path / "other/model.safetensors")
    weights = opened(tmp_path / "both").state_dict()
    assert all(torch.equal(weights[name], other[name]) for name in other)
    assert not list((tmp_path / "both-linked").glob("model-*"))  # what is not used has no digest
    shard.unlink()
    refused(folder, rf"{shard.name}: a file of the weights is missing")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, r"model\.safetensors\.index\.json: cannot be read as an index")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("consolidated.safetensors", r"pytorch_model\.bin \(there is consolidated\.safetensors\)"),
        ("model.fp16.safetensors", r"pytorch_model\.bin \(there is model\.fp16\.safetensors\); save it"),
        ("model-q4_k_m.gguf", r"pytorch_model\.bin \(there is model-q4_k_m\.gguf\); GGUF is usually quantised"),
    ],
)
def test_weights_of_other_names_are_named(tmp_path, name: str, words: str):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, rf"has neither safetensors nor {words}")


def test_a_checkpoint_in_a_folder_below_is_found_by_the_sentence(tmp_path):
    tiny_checkpoint(tmp_path / "run/checkpoint-500")
    refused(tmp_path / "run", r"has no config\.json; .*\(checkpoint-500 has one\)")
    refused(tmp_path / "nowhere", "nowhere: there is no such folder")


QUANTISED = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "bitsandbytes": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors"}},
    "fp8": {"quantization_config": {"quant_method": "fp8"}},
    "older compressed-tensors": {"compression_config": {"format": "int-quantized"}},
    "mlx": {"quantization": {"group_size": 64, "bits": 4}},
}


@pytest.mark.parametrize("as_pickle", [True, False], ids=["pickle", "safetensors"])
@pytest.mark.parametrize("method", QUANTISED)
def test_a_quantised_checkpoint_is_one_sentence(tmp_path, method: str, as_pickle: bool):
    folder = tiny_checkpoint(tmp_path / "model", "llama", pickled=as_pickle)
    edited_config(folder, **QUANTISED[method])
    refused(folder, "is a quantised checkpoint .*gradients of packed weights mean nothing, so take the checkpoint")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2])
def test_packed_weights_are_refused_without_a_word_in_the_config(tmp_path, kind: torch.dtype):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    edited_weights(folder, lambda w: w.update({n: (v * 50).to(kind) for n, v in w.items() if "proj" in n}))
    refused(folder, r"is a quantised checkpoint \(the weights model.* and 11 more are [IUF]\d+")


def test_a_quantised_checkpoint_of_an_older_tool_is_refused(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    (folder / "quantize_config.json").write_text('{"bits": 4}')
    refused(folder, r"is a quantised checkpoint \(it has quantize_config\.json\)")


def test_half_precision_is_no_quantisation(tmp_path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    edited_weights(folder, lambda w: w.update({name: value.bfloat16() for name, value in w.items()}))
    assert opened(folder).dtype == torch.float32


# Configs


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("{", r"config\.json: cannot be read as JSON"),
        ("[1]", r"config\.json: holds no JSON object"),
        (LFS, r"config\.json: is a Git LFS pointer"),
        ("{}", "its config.json has no `model_type`"),
        ('{"model_type": "llama9"}', "does not know the model type 'llama9'; upgrade it"),
        ('{"model_type": 3}', "does not know the model type 3"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "the model cannot be loaded"),
        ('{"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}', "the model cannot be loaded"),
        ('{"model_type": "vit"}', "the model cannot be loaded"),
    ],
)
def test_a_config_that_is_none_is_one_sentence(tmp_path, content: str, words: str):
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "config.json").write_text(content)
    refused(folder, words)


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**TINY, "image_size": 8, "patch_size": 4}
MULTIMODAL = {
    "llava": lambda: LlavaConfig(
        vision_config={**VISION, "model_type": "clip_vision_model"},
        text_config={**TINY, "model_type": "llama", "vocab_size": 300},
    ),
    "gemma3": lambda: Gemma3Config(text_config={**TINY, "vocab_size": 300}, vision_config=VISION),
}


@pytest.mark.parametrize("as_pickle", [True, False], ids=["pickle", "safetensors"])
@pytest.mark.parametrize("kind", MULTIMODAL)
def test_a_multimodal_config_is_one_sentence(tmp_path, kind: str, as_pickle: bool):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    MULTIMODAL[kind]().save_pretrained(folder)
    if as_pickle:
        pickled(folder)
    refused(folder, f"{kind} is a multimodal model with a text model inside.*save its text model alone")


@pytest.mark.parametrize("as_pickle", [True, False], ids=["pickle", "safetensors"])
def test_an_encoder_decoder_is_one_sentence(tmp_path, as_pickle: bool):
    small = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 8, "encoder_attention_heads": 2}
    small |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": 300}
    bart = tmp_path / "bart"
    BartForConditionalGeneration(BartConfig(**small)).save_pretrained(bart)
    byte_level_tokenizer().save_pretrained(bart)
    t5 = tiny_checkpoint(tmp_path / "t5", "llama")
    T5Config(vocab_size=300, d_model=8, num_layers=1, num_heads=2, d_kv=4, d_ff=16).save_pretrained(t5)
    for folder in (bart, t5):
        if as_pickle:
            pickled(folder)
        refused(folder, f"{folder.name} is an encoder-decoder, and only decoder-only models are tracked")


def test_a_masked_language_model_is_one_sentence(tmp_path):
    folder = tmp_path / "model"
    AutoModelForMaskedLM.from_config(BertConfig(**SIZES)).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    refused(folder, "was saved as BertForMaskedLM, which predicts masked tokens from both sides")
