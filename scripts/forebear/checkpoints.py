"""Models on disk: Hugging Face directories, loaded on the device of the job."""

import json
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
from forebear.errors import ForebearError, shortened
from forebear.heads import runs_own_code
from forebear.manifests import (
    CODE,
    NAME,
    OTHERS,
    PICKLES,
    SAFETENSORS,
    find_weights,
    matching,
    read_manifest,
    write_manifest,
)
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
        _refer_to_code(model, folder / "config.json")
        tokenizer.save_pretrained(folder, save_jinja_files=False)  # a chat template is in tokenizer_config.json then
        for file in folder.iterdir():
            if file.name not in FILES:  # others only repeat what these say
                file.unlink()


def _refer_to_code(model: PreTrainedModel, config: Path) -> None:
    """Let a saved config name the folder of the checkpoint that its model's own code came with, as transformers reads it.

    So the code is in one place, under the digests of that checkpoint, and no part of FILES.
    """
    if runs_own_code(model):
        content = json.loads(config.read_text(encoding="utf-8"))
        content["auto_map"] = {
            name: place if "--" in place else f"{model.config.name_or_path}--{place}"
            for name, place in _code_places(model.config.name_or_path).items()
        }
        config.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def link_checkpoint(folder: Path, directory: Path, trust_remote_code: bool = False) -> None:
    """Make `directory` a checkpoint of links to the files in `folder`, to the model's own code only if it is trusted.

    Weights in PyTorch's own format are read without executing what they contain
    (`weights_only`) and written as safetensors.

    Raises:
        ForebearError: the folder has no config, or no weights in a known format; or the model
            needs its own code, and that is not trusted or not there.
    """
    if not (folder / "config.json").is_file():
        raise ForebearError(f"{folder}: has no config.json; give a folder that `save_pretrained` has written.")
    directory.mkdir(parents=True, exist_ok=True)
    for stale in matching(directory, ("*",)):
        stale.unlink()
    if not matching(folder, SAFETENSORS):
        _convert(folder, directory, trust_remote_code)
    for file in matching(folder, (*SAFETENSORS, *OTHERS, *(CODE if trust_remote_code else ()))):
        link = directory / file.name
        if not link.exists() and file.name not in (NAME, "pytorch_model.bin.index.json"):
            link.symlink_to(file.resolve())
    find_weights(directory)
    for place in _code_places(directory).values() if trust_remote_code else ():
        if "--" in place:
            raise ForebearError(
                f"{folder}: its code is in another repository ({place}); give a folder that has the code beside the "
                "weights, and its `auto_map` without a repository."
            )
    with _explained_code(folder, trust_remote_code):
        AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)


def _convert(folder: Path, directory: Path, trust_remote_code: bool) -> None:
    if not matching(folder, PICKLES):
        raise ForebearError(f"{folder}: has neither safetensors nor pytorch_model.bin.")
    try:
        with _explained_code(folder, trust_remote_code):
            options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
            model = _from_weights(AutoModelForCausalLM, folder, dtype="auto", weights_only=True, **options)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ForebearError(f"{folder}: pytorch_model.bin cannot be read as plain weights ({reason}).") from error
    model.save_pretrained(directory)


def _from_weights(kind: type, directory: str | Path, **options) -> PreTrainedModel:
    """The model of a folder, all of whose weights are there: transformers fills in random ones and merely warns.

    Raises:
        ForebearError: naming the weights that are not in the folder.
    """
    model, loaded = kind.from_pretrained(directory, output_loading_info=True, **options)
    if missing := sorted(loaded["missing_keys"]):
        raise ForebearError(
            f"{directory}: has no weights for {shortened(missing)} of {type(model).__name__}, which would be random; "
            "take a checkpoint that was saved with its head, or whose config names the class that it was saved from."
        )
    return model


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


@contextmanager
def _explained_code(directory: str | Path, trust_remote_code: bool) -> Iterator[None]:
    """Say in a sentence that a model needs its own code and that is not trusted, or cannot be loaded."""
    try:
        yield
    except ValueError as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ForebearError(
            f"{directory}: the model brings Python code of its own, which is not run; read that code, and if you "
            "trust it, set `trust_remote_code: true` in the study."
        ) from error
    except (OSError, ImportError) as error:
        if not trust_remote_code:
            raise
        raise ForebearError(f"{directory}: the model cannot be loaded ({str(error).partition(chr(10))[0]}).") from error


def _code_places(directory: str | Path) -> dict[str, str]:
    """Where a checkpoint's config says that its own code is: module.Class beside it, or folder--module.Class."""
    places = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    return {name: place for name, place in places.items() if isinstance(place, str)}  # a tokenizer has a list


def _check_code(directory: str | Path) -> None:
    """Compare own code in another folder with the digests there, and say that such code may be run."""
    if places := _code_places(directory):
        for origin in sorted({place.partition("--")[0] for place in places.values() if "--" in place}):
            read_manifest(Path(origin) / NAME)
        print(f"{directory}: Python code that came with the model may be run: the study has `trust_remote_code: true`")


def load_model(
    directory: str | Path, gpus: int = 0, precision: str = "float32", trust_remote_code: bool = False
) -> PreTrainedModel:
    """The language model or classifier in evaluation mode with frozen parameters, from safetensors.

    Args:
        gpus: none, one, or several devices, over which the layers are then spread evenly.
        precision: of the parameters, whatever they were saved in.
        trust_remote_code: run the Python code that the checkpoint brings, and say so.

    Raises:
        ForebearError: the checkpoint needs its own code, and that is not trusted; or lacks some of its weights.
    """
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with _explained_code(directory, trust_remote_code):
        if trust_remote_code:
            _check_code(directory)
        config = AutoConfig.from_pretrained(directory, **options)
        classifies = any(name.endswith("ForSequenceClassification") for name in config.architectures or [])
        kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
        options["dtype"] = getattr(torch, precision)
        device = device_for(gpus)
        if gpus > 1:
            options["device_map"] = "balanced"
        model = _from_weights(kind, directory, use_safetensors=True, **options)
    return (model if gpus > 1 else model.to(device)).eval().requires_grad_(False)


def load_encoder(directory: str | Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model without a head, such as a sentence encoder."""
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with _explained_code(directory, trust_remote_code):
        if trust_remote_code:
            _check_code(directory)
        model = AutoModel.from_pretrained(directory, use_safetensors=True, **options)
    return model.eval().requires_grad_(False)


def load_tokenizer(directory: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    with _explained_code(directory, trust_remote_code):
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
