"""Adapters are merged into the model of the stage before, which is compared with the one that they were trained on."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from edited_checkpoints import LFS, classifier, edited_config
from forebear.artifacts.digests import file_digest
from forebear.artifacts.manifests import read_manifest, write_manifest
from forebear.errors import ForebearError
from forebear.gradients.lineage import check_lineage
from forebear.models.adapters import is_adapter, merge_adapter
from forebear.models.checkpoints import FILES, link_checkpoint, load_model, load_tokenizer
from published import tiny_checkpoint
from trained_adapters import IDS, LORA, base_model, trained_adapter


def stage_before(folder: Path, published: Path, **source: str) -> tuple[Path, dict]:
    """A checkpoint of a stage, as the rule makes it; returns its folder and its manifest."""
    link_checkpoint(published, folder)
    source = {"hub": None, "path": None, "package": None, **source} if source else {"path": str(published)}
    write_manifest(folder, {"name": "pretraining", "source": source})
    return folder, read_manifest(folder / "manifest.json")


def adapted_logits(adapter: Path, base: Path, rows: int | None = None) -> Tensor:
    """What peft computes with the adapter beside the weights, in float64."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows)
    adapted = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double().eval()
    with torch.no_grad():
        return adapted.get_base_model()(IDS).logits


def merged(tmp_path: Path, adapter: Path, base: Path, declared: str | None = None, **source: str) -> Path:
    previous, facts = stage_before(tmp_path / "before", base, **source)
    told = merge_adapter(adapter, previous, tmp_path / "merged", facts, declared, False)
    write_manifest(tmp_path / "merged", {"name": "finetuning", **told})
    return tmp_path / "merged"


def logits(folder: Path) -> Tensor:
    with torch.no_grad():
        return load_model(folder).double()(IDS).logits


def close(found: Tensor, expected: Tensor) -> None:
    """To the rounding of weights in float32."""
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


KINDS = {
    "lora": (peft.LoraConfig, LORA),
    "rank-stabilised": (peft.LoraConfig, {**LORA, "use_rslora": True}),
    "patterns": (peft.LoraConfig, {**LORA, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    "dora": (peft.LoraConfig, {**LORA, "use_dora": True}),
    "dropout": (peft.LoraConfig, {**LORA, "lora_dropout": 0.5}),
    "all maps": (peft.LoraConfig, {**LORA, "target_modules": "all-linear"}),
    "saved modules": (peft.LoraConfig, {**LORA, "modules_to_save": ["lm_head", "embed_tokens"]}),
    "embedding": (peft.LoraConfig, {**LORA, "target_modules": ["embed_tokens", "q_proj"]}),
    "some tokens": (peft.LoraConfig, {**LORA, "trainable_token_indices": [5, 42]}),
    "pissa": (peft.LoraConfig, {**LORA, "init_lora_weights": "pissa"}),
    "loha": (peft.LoHaConfig, {"r": 2, "target_modules": ["q_proj"]}),
    "lokr": (peft.LoKrConfig, {"r": 2, "target_modules": ["q_proj"]}),
    "ia3": (peft.IA3Config, {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "oft": (peft.OFTConfig, {"r": 2, "oft_block_size": 0, "target_modules": ["q_proj"]}),
    "vera": (peft.VeraConfig, {"r": 2, "target_modules": ["q_proj"]}),
    "norms": (peft.LNTuningConfig, {"target_modules": ["input_layernorm"]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_computes_what_the_model_with_it_computes(tmp_path, kind: str):
    base = base_model(tmp_path / "base")
    made, options = KINDS[kind]
    adapter = trained_adapter(tmp_path / "adapter", base, made(task_type="CAUSAL_LM", **options))
    expected = adapted_logits(adapter, base)
    found = logits(merged(tmp_path, adapter, base))
    close(found, expected)
    assert (logits(tmp_path / "before") - expected).abs().max() > 1e-2 * expected.abs().max()  # it changed the model


@pytest.mark.parametrize(
    ("family", "module", "bias"),
    [("gpt2", "c_attn", "none"), ("gpt_neox", "query_key_value", "lora_only"), ("opt", "q_proj", "all")],
)
def test_transposed_maps_and_biases_are_merged(tmp_path, family: str, module: str, bias: str):
    base = base_model(tmp_path / "base", family)
    config = peft.LoraConfig(r=4, target_modules=[module], bias=bias, fan_in_fan_out=family == "gpt2")
    adapter = trained_adapter(tmp_path / "adapter", base, config)
    expected = adapted_logits(adapter, base)
    close(logits(merged(tmp_path, adapter, base)), expected)


def test_a_merged_map_is_the_formula(tmp_path):
    """W + (α/r)·BA, by hand."""
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    weights, parts = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.v_proj"
    a, b = (parts[f"base_model.model.{name}.lora_{part}.weight"].double() for part in "AB")
    found = load_file(merged(tmp_path, adapter, base) / "model.safetensors")
    assert torch.allclose(found[f"{name}.weight"].double(), weights[f"{name}.weight"].double() + 4 * b @ a, atol=1e-7)
    assert torch.equal(found["model.layers.1.mlp.up_proj.weight"], weights["model.layers.1.mlp.up_proj.weight"])


def test_the_manifest_tells_of_both_and_the_merged_model_is_a_plain_checkpoint(tmp_path):
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    folder = merged(tmp_path, adapter, base)
    manifest, before = read_manifest(folder / "manifest.json"), read_manifest(tmp_path / "before/manifest.json")
    assert manifest["base"]["model_digest"] == before["model_digest"]
    assert manifest["base"]["source"] == {"path": str(base)}
    assert manifest["adapter"]["kind"] == "LORA"
    assert manifest["adapter"]["base_model_name_or_path"] == str(base)
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert manifest["adapter"]["files"] == {name: file_digest(adapter / name) for name in names}
    assert {file.name for file in folder.iterdir()} >= {*FILES, "manifest.json"}
    assert not (folder / "adapter_config.json").exists()
    assert all(weight.dtype == torch.float32 for weight in load_file(folder / "model.safetensors").values())
    check_lineage("finetuning", folder, tmp_path / "before")
    link_checkpoint(folder, tmp_path / "again")  # as the checkpoint of another study


def test_the_adapters_own_tokenizer_goes_before_that_of_the_stage_before(tmp_path):
    """With tokens of its own, and an embedding that was resized for them."""
    base = base_model(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    config = peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"])
    adapter = trained_adapter(tmp_path / "adapter", base, config, rows=size + 2)
    tokenizer.save_pretrained(adapter)
    expected = adapted_logits(adapter, base, rows=size + 2)
    folder = merged(tmp_path, adapter, base)
    close(logits(folder), expected)
    found = load_tokenizer(folder)
    assert len(found) == size + 2
    assert found.chat_template == tokenizer.chat_template
    check_lineage("finetuning", folder, tmp_path / "before")  # another vocabulary is no other model


def test_a_resized_embedding_of_a_plain_adapter_is_used(tmp_path):
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA), rows=310)
    close(logits(merged(tmp_path, adapter, base)), adapted_logits(adapter, base, 310))
    assert len(load_tokenizer(tmp_path / "merged")) == 300  # that of the stage before


def test_pickled_adapters_are_read_without_running_them(tmp_path, monkeypatch):
    from edited_checkpoints import Malicious

    monkeypatch.chdir(tmp_path)
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    expected = adapted_logits(adapter, base)
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    close(logits(merged(tmp_path, adapter, base)), expected)
    torch.save({"base_model.model.lm_head.weight": Malicious()}, adapter / "adapter_model.bin")
    with pytest.raises(ForebearError, match=r"adapter_model\.bin: cannot be read as plain weights"):
        merged(tmp_path, adapter, base)
    assert not (tmp_path / "harm").exists()


def edited_adapter(folder: Path, **values: object) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | values))


def test_an_adapter_of_another_model_is_refused_or_said(tmp_path, capsys):
    base, other = base_model(tmp_path / "base"), base_model(tmp_path / "other", seed=5)
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    with pytest.raises(
        ForebearError, match=r"adapter: was trained on .*/base, whose weights are not those of the stage"
    ):
        merged(tmp_path, adapter, other)
    merged(tmp_path, adapter, other, declared=str(base))  # said to be the same
    shutil.copytree(base, tmp_path / "moved")
    merged(tmp_path, adapter, tmp_path / "moved")  # the same weights elsewhere
    assert "warning" not in capsys.readouterr().out

    hub = {"hub": "org/Llama-Tiny", "revision": "v1"}
    for named in ("org/Llama-Tiny", "somebody/llama-tiny", "unsloth/llama-tiny-bnb-4bit", "/home/me/llama-tiny/"):
        edited_adapter(adapter, base_model_name_or_path=named)
        merged(tmp_path, adapter, base, **hub)
    assert "warning" not in capsys.readouterr().out
    edited_adapter(adapter, base_model_name_or_path="org/Llama-Tiny-Chat")
    with pytest.raises(
        ForebearError, match=r"trained on org/Llama-Tiny-Chat, and the stage before is org/Llama-Tiny; .*`base: org/Ll"
    ):
        merged(tmp_path, adapter, base, **hub)
    merged(tmp_path, adapter, base, declared="org/Llama-Tiny-Chat", **hub)
    assert "warning" not in capsys.readouterr().out
    merged(tmp_path, adapter, base)  # a folder, which may be a copy of that
    assert "warning: " in (said := capsys.readouterr().out)
    assert "make sure that they are the same model" in said
    edited_adapter(adapter, base_model_name_or_path=None)
    merged(tmp_path, adapter, base)
    assert "does not say which model it was trained on" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"hidden_size": 16, "head_dim": 8}, {"num_hidden_layers": 1}, "gpt2"])
def test_an_adapter_that_does_not_fit_is_one_sentence(tmp_path, change: dict | str):
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    edited_adapter(adapter, base_model_name_or_path=None)
    other = tiny_checkpoint(tmp_path / "other", change if isinstance(change, str) else "llama")
    if isinstance(change, dict):
        edited_config(other, **change)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(other)).save_pretrained(other)
    with pytest.raises(ForebearError, match="does not fit the stage before") as caught:
        merged(tmp_path, adapter, other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (peft.PrefixTuningConfig, {"num_virtual_tokens": 3}),
        (peft.PromptTuningConfig, {"num_virtual_tokens": 3}),
        (peft.PromptEncoderConfig, {"num_virtual_tokens": 3}),
        (peft.AdaptionPromptConfig, {"adapter_len": 2, "adapter_layers": 1}),
        (peft.LoraConfig, {**LORA, "alora_invocation_tokens": [1, 2]}),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_one_sentence(tmp_path, kind: type, options: dict):
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, kind(task_type="CAUSAL_LM", **options), steps=0)
    with pytest.raises(ForebearError, match=r"cannot be merged into the model's weights .*; take a LoRA adapter"):
        merged(tmp_path, adapter, base)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda f: (f / "adapter_model.safetensors").unlink(), r"has no adapter_model\.safetensors"),
        (lambda f: (f / "adapter_model.safetensors").write_text(LFS), "is a Git LFS pointer"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\xff" * 99), "is cut short or damaged"),
        (lambda f: (f / "adapter_config.json").write_text("{"), r"adapter_config\.json: cannot be read as JSON"),
        (lambda f: edited_adapter(f, peft_type="NEWEST"), "does not know the adapter type 'NEWEST'; upgrade it"),
        (lambda f: edited_adapter(f, peft_type=None), "does not know the adapter type None"),
        (lambda f: edited_adapter(f, newest_trick=True), "does not know the adapter's settings newest_trick"),
        (lambda f: edited_adapter(f, task_type="SEQ_CLS"), "is the adapter of a classifier"),
        (lambda f: edited_adapter(f, r=8), "does not fit the stage before"),
    ],
)
def test_a_damaged_adapter_is_one_sentence(tmp_path, edit, words: str):
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    edit(adapter)
    with pytest.raises(ForebearError, match=words) as caught:
        merged(tmp_path, adapter, base)
    assert "\n" not in str(caught.value)


def test_weights_of_the_adapter_that_are_missing_or_left_over_are_named(tmp_path):
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    dropped = next(iter(whole))
    save_file({name: value for name, value in whole.items() if name != dropped}, file)
    with pytest.raises(ForebearError, match=r"lora_A.* in one and not in the other"):
        merged(tmp_path, adapter, base)
    save_file({**whole, dropped.replace("layers.0", "layers.7"): whole[dropped].clone()}, file)
    with pytest.raises(ForebearError, match=r"layers\.7.* in one and not in the other"):
        merged(tmp_path, adapter, base)


def test_an_adapter_needs_a_stage_before_and_is_told_from_a_model(tmp_path):
    base = base_model(tmp_path / "base")
    adapter = trained_adapter(tmp_path / "adapter", base, peft.LoraConfig(**LORA))
    assert is_adapter(adapter)
    assert not is_adapter(base)
    shutil.copy(base / "config.json", adapter)  # as some trainers do
    assert is_adapter(adapter)
    with pytest.raises(ForebearError, match="is an adapter, which needs the model of a stage before it"):
        merge_adapter(adapter, None, tmp_path / "merged", {}, None, False)
    shutil.copy(base / "model.safetensors", adapter)
    assert not is_adapter(adapter)
    with pytest.raises(ForebearError, match=r"has weights of its own and an adapter .*, and nothing says whether"):
        link_checkpoint(adapter, tmp_path / "linked")


def test_an_adapter_on_a_classifier_is_merged(tmp_path):
    base = tmp_path / "base"
    classifier(base)
    config = peft.LoraConfig(**LORA, task_type="SEQ_CLS")
    adapted = peft.get_peft_model(AutoModelForSequenceClassification.from_pretrained(base), config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
        expected = adapted(input_ids=IDS).logits
        adapted.save_pretrained(tmp_path / "adapter")
        found = load_model(merged(tmp_path, tmp_path / "adapter", base))(IDS).logits
    assert torch.allclose(found, expected, atol=1e-5)
