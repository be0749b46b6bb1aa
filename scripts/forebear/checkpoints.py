"""Models on disk: Hugging Face directories, loaded on the device of the job."""

import pickle
import sys
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import forebear
from forebear.errors import ForebearError
from forebear.manifests import NAME, OTHERS, PICKLES, SAFETENSORS, find_weights, matching, write_manifest
from forebear.writing import atomic_files

# What a checkpoint consists of, beside its manifest; the rule that trains names each as an
# output, so that a cache of outputs holds all of it.
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def save_checkpoint(directory: str | Path, model: PreTrainedModel, tokenizer, **facts) -> None:
    """Save model and tokenizer as FILES, and then the manifest."""
    save_files(directory, model, tokenizer)
    write_manifest(Path(directory), {**facts, "versions": versions()})


def save_files(directory: str | Path, model: PreTrainedModel, tokenizer) -> None:
    """Save model and tokenizer as FILES."""
    with atomic_files(directory) as folder:
        model.save_pretrained(folder, max_shard_size=sys.maxsize)
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            if file.name not in FILES:  # others only repeat what these say
                file.unlink()


def link_checkpoint(folder: Path, directory: Path) -> None:
    """Make `directory` a checkpoint of links to the files in `folder`.

    Weights in PyTorch's own format are read without executing what they contain
    (`weights_only`) and written as safetensors.

    Raises:
        ForebearError: the folder has no config, or no weights in a known format.
    """
    if not (folder / "config.json").is_file():
        raise ForebearError(f"{folder}: has no config.json; give a folder that `save_pretrained` has written.")
    directory.mkdir(parents=True, exist_ok=True)
    for stale in matching(directory, ("*",)):
        stale.unlink()
    if not matching(folder, SAFETENSORS):
        _convert(folder, directory)
    for file in matching(folder, (*SAFETENSORS, *OTHERS)):
        link = directory / file.name
        if not link.exists() and file.name not in (NAME, "pytorch_model.bin.index.json"):
            link.symlink_to(file.resolve())
    find_weights(directory)


def _convert(folder: Path, directory: Path) -> None:
    if not matching(folder, PICKLES):
        raise ForebearError(f"{folder}: has neither safetensors nor pytorch_model.bin.")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", weights_only=True, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ForebearError(f"{folder}: pytorch_model.bin cannot be read as plain weights ({reason}).") from error
    model.save_pretrained(directory)


def versions() -> dict[str, str]:
    """Of the libraries that a checkpoint depends on."""
    return {"forebear": forebear.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def device_for(gpus: int) -> torch.device:
    """The CPU, or the first of `gpus` devices.

    Raises:
        ForebearError: fewer devices are visible than the job asked for.
    """
    if gpus == 0:
        return torch.device("cpu")
    if torch.cuda.device_count() < gpus:
        raise ForebearError(
            f"the study asks for {gpus} GPUs, but this job sees {torch.cuda.device_count()}; "
            "lower `gpus`, or check --resources gpu and CUDA_VISIBLE_DEVICES."
        )
    return torch.device("cuda:0")


def check_context(model: PreTrainedModel, max_length: int) -> None:
    """Refuse sequences that are longer than the model has positions for.

    Raises:
        ForebearError: naming both lengths.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ForebearError(
            f"`max_length` is {max_length}, but the model has {positions} positions (`max_position_embeddings`); "
            "lower the one or raise the other."
        )


def load_model(directory: str | Path, gpus: int = 0, precision: str = "float32") -> PreTrainedModel:
    """The language model or classifier in evaluation mode with frozen parameters, from safetensors.

    Args:
        gpus: none, one, or several devices, over which the layers are then spread evenly.
        precision: of the parameters, whatever they were saved in.
    """
    options = {"trust_remote_code": False, "local_files_only": True}
    config = AutoConfig.from_pretrained(directory, **options)
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    options["dtype"] = getattr(torch, precision)
    device = device_for(gpus)
    if gpus > 1:
        options["device_map"] = "balanced"
    model = kind.from_pretrained(directory, use_safetensors=True, **options)
    return (model if gpus > 1 else model.to(device)).eval().requires_grad_(False)


def load_encoder(directory: str | Path) -> PreTrainedModel:
    """A model without a head, such as a sentence encoder."""
    model = AutoModel.from_pretrained(directory, use_safetensors=True, trust_remote_code=False, local_files_only=True)
    return model.eval().requires_grad_(False)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
