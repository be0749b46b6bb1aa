"""Checkpoints whose files somebody changed, and what is said of them."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from forebear.errors import ForebearError
from forebear.models.checkpoints import link_checkpoint, load_model, load_tokenizer
from published import byte_level_tokenizer

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 300}


def edited_config(folder: Path, **values: object) -> None:
    """Change keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | values
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def edited_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    """The same weights as pytorch_model.bin."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def opened(folder: Path) -> PreTrainedModel:
    """What the jobs do with a checkpoint: link it, load its model and its tokenizer."""
    linked = folder.with_name(f"{folder.name}-linked")
    link_checkpoint(folder, linked)
    load_tokenizer(linked)
    return load_model(linked)


def refused(folder: Path, words: str) -> None:
    """One sentence of one line, with a remedy behind what is wrong."""
    with pytest.raises(ForebearError, match=words) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    assert re.search(r"[;:] .*", str(caught.value))


def classifier(folder: Path, kind: str = "llama", **options: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **{"num_labels": 3, **options})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        model.score.weight.mul_(10)
    model.save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return model


class Malicious:
    """What a pickle could do on loading."""

    def __reduce__(self):
        return os.mkdir, ("harm",)
