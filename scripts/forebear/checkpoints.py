"""Models on disk: Hugging Face directories, loaded on the device of the job."""

from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import forebear
from forebear.errors import ForebearError
from forebear.manifests import write_manifest
from forebear.writing import atomic_files


def save_checkpoint(directory: str | Path, model: PreTrainedModel, tokenizer, **facts) -> None:
    """Save model and tokenizer as safetensors and JSON, and then the manifest."""
    directory = Path(directory)
    with atomic_files(directory) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    versions = {"forebear": forebear.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    write_manifest(directory, {**facts, "versions": versions})


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


def load_model(directory: str | Path) -> PreTrainedModel:
    """The language model or classifier in evaluation mode with frozen parameters, from safetensors."""
    options = {"trust_remote_code": False, "local_files_only": True}
    config = AutoConfig.from_pretrained(directory, **options)
    classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    return kind.from_pretrained(directory, use_safetensors=True, **options).eval().requires_grad_(False)


def load_tokenizer(directory: str | Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
