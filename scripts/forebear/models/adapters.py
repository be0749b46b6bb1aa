"""Adapters (LoRA and its relatives), merged into the model of the stage before: W + (α/r)·BA, in float32.

`peft` knows all kinds and does the merging. What is looked at here is whether the adapter belongs to that
model, whether all its weights were used, and whether the checkpoint that comes out computes what the model
with its adapter computes.
"""

import dataclasses
import pickle
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from forebear.artifacts.digests import file_digest
from forebear.artifacts.manifests import (
    ADAPTER_PICKLES,
    ADAPTER_SAFETENSORS,
    CODE,
    NAME,
    OTHERS,
    PICKLES,
    SAFETENSORS,
    find_weights,
    matching,
    weights_digest,
)
from forebear.errors import ForebearError, shortened
from forebear.models.checkpoints import explained_load, load_model, load_tokenizer, save_model
from forebear.models.heads import is_classifier, position_logits
from forebear.models.inspection import ADAPTER, check_whole, read_json, reason, weight_types
from forebear.models.vocabulary import has_vocabulary
from forebear.runtime.job import warn

INSTALL = 'pip install -e ".[adapters]"'
TOLERANCE = 1e-3  # of the largest logit: float32's rounding in a deep model stays far below
PROBED = 16  # tokens

NO_TOKENIZER = ("config.json", "generation_config.json", "*.index.json", ADAPTER, NAME)

# How the name of a quantised copy ends, on which QLoRA adapters are trained.
QUANTISED = re.compile(r"([-_.](unsloth|bnb|4bit|8bit|gptq|awq|int4|int8|fp8|nf4|quantized|w4a16|hqq))+$")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no weights of its own."""
    return (folder / ADAPTER).is_file() and not matching(folder, (*SAFETENSORS, *PICKLES))


def merge_adapter(
    folder: Path, previous: Path | None, directory: Path, facts: Mapping, declared: str | None, trust_remote_code: bool
) -> dict:
    """Make `directory` a checkpoint in float32 of the stage before with an adapter merged into it, without its manifest.

    The tokenizer is the adapter's own if it has one, else that of the stage before.

    Args:
        previous: the checkpoint of the stage before; None for a first stage.
        facts: the manifest of that.
        declared: the name of the adapter's base that the config says is the stage before.

    Returns:
        What the manifest says of the adapter and of the model that it was merged into.

    Raises:
        ForebearError: there is no stage before or it is another model, the adapter is damaged or of a kind that cannot
            be merged, or peft is not installed.
    """
    if previous is None:
        raise ForebearError(
            f"{folder}: is an adapter, which needs the model of a stage before it, and this is the first stage; give "
            "the model that it was trained on as the `checkpoint` of a stage before."
        )
    content = read_json(folder / ADAPTER)
    check_base(folder, content.get("base_model_name_or_path"), facts, declared)
    file, described = _adapter_file(folder), _described(folder, content)
    weights = _read(file)
    model = load_model(previous, trust_remote_code=trust_remote_code)
    if content.get("task_type") == "SEQ_CLS" and not is_classifier(model):
        raise ForebearError(
            f"{folder}: is the adapter of a classifier, and the stage before is a language model; an adapter does not "
            "say what its classes are called, so merge it into its classifier and give that as `checkpoint`."
        )
    _resize(folder, weights, model)
    ids = torch.linspace(0, model.get_input_embeddings().num_embeddings - 1, PROBED).long()[None]
    adapted = _adapted(folder, described, weights, model, previous)
    with torch.no_grad():
        expected = position_logits(adapted.get_base_model(), ids)
    try:
        model = adapted.merge_and_unload()
    except Exception as error:
        raise ForebearError(f"{folder}: {_kind(content)} {_unmergeable(reason(error))}") from error
    for stale in matching(directory, ("*",)):
        stale.unlink()
    save_model(directory, model)
    tokenizer = folder if has_vocabulary(folder) else previous
    for part in matching(tokenizer, (*OTHERS, *(CODE if trust_remote_code else ()))):
        if not any(part.match(name) for name in NO_TOKENIZER):
            shutil.copyfile(part, directory / part.name)
    del adapted, model
    _check_logits(folder, content, load_model(directory, trust_remote_code=trust_remote_code), ids, expected)
    load_tokenizer(directory, trust_remote_code)
    print(f"{folder}: a {_kind(content)} adapter, merged in float32 into {previous}, tokenizer from {tokenizer}")
    base = {key: facts[key] for key in ("name", "stage", "source", "model_digest") if key in facts}
    return {
        "adapter": {
            "kind": content["peft_type"],
            "base_model_name_or_path": content.get("base_model_name_or_path"),
            "files": {part.name: file_digest(part) for part in (folder / ADAPTER, file)},
            "peft": version("peft"),
        },
        "base": base,
    }


def check_base(folder: Path, named: str | None, facts: Mapping, declared: str | None) -> None:
    """Compare the base that an adapter names with the stage before: by weights where both are there, else by name.

    Raises:
        ForebearError: the weights differ, or both are on the hub under different names.
    """
    source = facts.get("source") or {}
    if not named:
        warn(f"{folder}: does not say which model it was trained on; it is merged into the stage before.")
        return
    if named == declared:
        return
    remedy = (
        f"give the adapter's base as the `checkpoint` of the stage before, or if that is it under another name, say so: "
        f"`base: {named}` beside the adapter's `hub` or `path`"
    )
    place = Path(named)
    if place.is_dir() and matching(place, SAFETENSORS):
        if place.resolve() == Path(source.get("path") or "/").resolve():
            return
        if weights_digest([file_digest(file) for file in find_weights(place)]) != facts["model_digest"]:
            raise ForebearError(
                f"{folder}: was trained on {named}, whose weights are not those of the stage before; {remedy}."
            )
        return
    known = [source[key] for key in ("hub", "path", "package") if source.get(key)]
    if _plain(named) in map(_plain, known):
        return
    known_as = known[0] if known else "a model trained here"
    sentence = f"{folder}: was trained on {named}, and the stage before is {known_as}"
    if source.get("hub") and re.fullmatch(r"[\w.-]+/[\w.-]+", named):
        raise ForebearError(f"{sentence}; {remedy}.")
    warn(f"{sentence}; make sure that they are the same model, and say so: `base: {named}`.")


def _plain(name: str) -> str:
    """The last part of a name or path, without what marks a quantised copy."""
    return QUANTISED.sub("", name.rstrip("/").rpartition("/")[2].lower())


def _kind(content: Mapping) -> str:
    return str(content.get("peft_type"))


def _unmergeable(why: str) -> str:
    return (
        f"cannot be merged into the model's weights ({why}), and only changed weights are tracked; take a LoRA adapter "
        "or a model that was fine-tuned as a whole."
    )


def _adapter_file(folder: Path) -> Path:
    found = matching(folder, (*ADAPTER_SAFETENSORS, *ADAPTER_PICKLES))
    if not found:
        raise ForebearError(f"{folder}: has no adapter_model.safetensors or adapter_model.bin; complete the adapter.")
    check_whole(found)
    return found[-1]  # adapter_model.safetensors, if both are there, as peft takes it


def _read(file: Path) -> dict[str, Tensor]:
    """An adapter's weights, without running what a pickle contains."""
    if file.suffix == ".safetensors":
        weight_types([file])
        return load_file(file)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        return {name: tensor.detach() for name, tensor in weights.items()}
    except (OSError, EOFError, ValueError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
        raise ForebearError(f"{file}: cannot be read as plain weights ({reason(error)}).") from error


def _described(folder: Path, content: Mapping):
    """The adapter's configuration, all of whose settings the installed peft knows."""
    try:
        import peft
    except ImportError as error:
        raise ForebearError(f"{folder}: is an adapter, and merging it needs peft; install it: {INSTALL}") from error
    kinds = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    if content.get("peft_type") not in kinds:
        raise ForebearError(
            f"{folder}: the installed peft does not know the adapter type {content.get('peft_type')!r}; upgrade it: "
            "pip install -U peft"
        )
    described = kinds[content["peft_type"]]
    known = {field.name for field in dataclasses.fields(described)}
    if unknown := sorted(key for key, value in content.items() if value and key not in known):
        raise ForebearError(
            f"{folder}: the installed peft does not know the adapter's settings {shortened(unknown)}, and would leave "
            "them out; upgrade it: pip install -U peft"
        )
    with explained_load(folder, False):
        described = described.from_peft_type(**{key: value for key, value in content.items() if key in known})
    described.inference_mode = True
    if described.is_prompt_learning or described.is_adaption_prompt:
        raise ForebearError(f"{folder}: {_kind(content)} {_unmergeable('it is a learned prompt')}")
    return described


def _adapted(folder: Path, described, weights: Mapping[str, Tensor], model: PreTrainedModel, previous: Path):
    """The model with the adapter beside its weights, all of the adapter's weights in use."""
    import peft

    try:
        adapted = peft.get_peft_model(model, described)
        loaded = adapted.load_adapter(str(folder), "default", torch_device="cpu")
    except Exception as error:
        raise ForebearError(
            f"{folder}: does not fit the stage before, {previous} ({type(model).__name__}: {reason(error)}); give the "
            "model that it was trained on as the `checkpoint` of the stage before."
        ) from error
    unused = [name for name in loaded.unexpected_keys if not _is_copy(name, weights)]
    if wrong := sorted([*loaded.missing_keys, *unused]):
        raise ForebearError(
            f"{folder}: does not fit the stage before, {previous}: {shortened(wrong, 4)} are in one and not in the "
            "other; give the model that it was trained on as the `checkpoint` of the stage before."
        )
    return adapted.eval()


def _is_copy(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a weight is saved twice: of a resized embedding peft saves the whole module and each of its parts."""
    plain = re.sub(r"\.modules_to_save(\.default)?\.", ".", name)
    if re.search(r"\.original_module\.", name):
        return True  # what was trained stands beside it
    return plain != name and name in weights and plain in weights and torch.equal(weights[name], weights[plain])


def _resize(folder: Path, weights: Mapping[str, Tensor], model: PreTrainedModel) -> None:
    """Give the embedding the rows of the adapter's, which was trained with more tokens."""
    words = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is words)
    saved = re.compile(rf"(^|\.){re.escape(name)}\.((base_layer|token_adapter\.base_layer|modules_to_save)\.)?weight$")
    for key, weight in weights.items():
        if saved.search(key) and len(weight) != words.num_embeddings:
            print(f"{folder}: was trained with {len(weight)} tokens, the stage before has {words.num_embeddings}")
            model.resize_token_embeddings(len(weight), mean_resizing=False)
            return


def _check_logits(folder: Path, content: Mapping, merged: PreTrainedModel, ids: Tensor, expected: Tensor) -> None:
    """Compare the checkpoint with the model and its adapter, on a few tokens."""
    with torch.no_grad():
        difference = (position_logits(merged, ids) - expected).abs().max() / expected.abs().max()
    if not difference <= TOLERANCE:
        raise ForebearError(
            f"{folder}: {_kind(content)} {_unmergeable(f'its logits would differ by {float(difference):.1%}')}"
        )
