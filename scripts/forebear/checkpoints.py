"""Models on disk: a Hugging Face directory with a manifest that names what made it."""

import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import forebear
from forebear.datasets import file_digest
from forebear.errors import ForebearError
from forebear.store import atomic_path

MANIFEST = "manifest.json"


def save_checkpoint(directory: str | Path, model: PreTrainedModel, tokenizer, **facts) -> None:
    """Save model and tokenizer; the manifest is written last and marks the directory complete."""
    directory = Path(directory)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    versions = {"forebear": forebear.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    content = {"model_digest": model_digest(directory), **facts, "versions": versions}
    with atomic_path(directory / MANIFEST) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(directory: str | Path) -> dict:
    """A checkpoint's manifest, after checking that the weights are those that it names."""
    path = Path(directory) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ForebearError(f"{path}: cannot be read ({error}); delete the directory and run again.") from error
    if model_digest(directory) != content["model_digest"]:
        raise ForebearError(
            f"{directory}: the weights are not those that {MANIFEST} names; delete the directory and run again."
        )
    return content


def model_digest(directory: str | Path) -> str:
    """SHA-256 of the weights."""
    return file_digest(Path(directory) / "model.safetensors")


def load_model(directory: str | Path) -> PreTrainedModel:
    """The model in evaluation mode with frozen parameters, from safetensors."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    return model.eval().requires_grad_(False)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
