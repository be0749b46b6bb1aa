"""What the files of a checkpoint say before a library is asked: are they whole, and are they a language model's?

A library that is given something else often goes on: it draws missing weights at random, reads packed
integers as numbers, or makes a vocabulary of nothing. So what can be known from the files is looked at first.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from forebear.errors import ForebearError, shortened

POINTER = b"version https://git-lfs.github.com/"  # begins the text that git has in place of a large file
ADAPTER = "adapter_config.json"
PACKED_NAMES = ("quantize_config.json", "quant_config.json", "hqq_config.json")  # beside the config, of older tools
PACKED_KEYS = ("quantization_config", "compression_config", "quantization")  # the last is MLX's
PACKED_TYPES = re.compile(r"[IU]\d+|F8_.*|F4|F6_.*")  # as safetensors names them; whole numbers and eight bits

UNPACKED = (
    "gradients of packed weights mean nothing, so take the checkpoint that it was made from, whose weights are in "
    "bfloat16, float16 or float32"
)

# What classes are called that are neither causal language models nor classifiers of sequences.
OTHER_TASKS = {
    "ForMaskedLM": "predicts masked tokens from both sides, and only decoder-only models are tracked",
    "ForConditionalGeneration": "is no plain decoder-only language model",
    "ForTokenClassification": "labels each token",
    "ForQuestionAnswering": "marks spans of a text",
    "ForMultipleChoice": "chooses between texts",
    "ForNextSentencePrediction": "compares sentences",
    "ForImageTextToText": "reads images too",
}


def read_json(path: Path) -> dict:
    """The object in a JSON file of a checkpoint.

    Raises:
        ForebearError: it is not there, a pointer, or no JSON object.
    """
    check_whole([path])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForebearError(f"{path}: cannot be read as JSON ({error}); fetch or save it again.") from error
    if not isinstance(content, dict):
        raise ForebearError(f"{path}: holds no JSON object but {type(content).__name__}; fetch or save it again.")
    return content


def check_whole(files: Iterable[Path]) -> None:
    """Refuse files that are empty, or the pointers that git leaves in the place of large ones."""
    for file in files:
        with file.open("rb") as handle:
            begin = handle.read(len(POINTER))
        if begin == POINTER:
            raise ForebearError(
                f"{file}: is a Git LFS pointer in the place of the file itself; run `git lfs pull` in its folder, or "
                "give the model's name on the hub as `hub`."
            )
        if not begin:
            raise ForebearError(f"{file}: is empty; fetch or save it again.")


def check_unpacked(folder: Path, config: Mapping) -> None:
    """Refuse quantised checkpoints, by their config.

    Raises:
        ForebearError: naming the method.
    """
    for key in PACKED_KEYS:
        if packed := config.get(key):
            method = packed.get("quant_method", "") if isinstance(packed, Mapping) else ""
            raise ForebearError(
                f"{folder}: is a quantised checkpoint (`{key}` in config.json{f': {method}' if method else ''}); "
                f"{UNPACKED}; if these weights are that already, remove `{key}`."
            )
    if named := [name for name in PACKED_NAMES if (folder / name).is_file()]:
        raise ForebearError(f"{folder}: is a quantised checkpoint (it has {named[0]}); {UNPACKED}.")


def weight_types(files: Iterable[Path]) -> dict[str, str]:
    """Name → type, as safetensors names it, of all tensors; only the files' heads are read.

    Raises:
        ForebearError: a file is cut short, damaged, or a pointer.
    """
    files, types = list(files), {}
    check_whole(files)
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                types |= {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ForebearError(
                f"{file}: is cut short or damaged ({reason(error)}); fetch or save it again."
            ) from error
    return types


def check_types(folder: Path, types: Mapping[str, str]) -> None:
    """Refuse weights in whole numbers or eight bits, which are no weights without scales that may be elsewhere.

    Masks that old versions saved as weights are no such thing: they are called a bias.
    """
    packed = [name for name, kind in types.items() if PACKED_TYPES.fullmatch(kind) and name.endswith("weight")]
    if packed:
        raise ForebearError(
            f"{folder}: is a quantised checkpoint (the weights {shortened(sorted(packed), 3)} are {types[packed[0]]}); "
            f"{UNPACKED}."
        )


def check_model_type(folder: Path, config: Mapping) -> None:
    """Refuse a config that names no architecture, or one that the installed transformers does not know.

    Raises:
        ForebearError: for these; not if the checkpoint brings code of its own.
    """
    kind = config.get("model_type")
    if config.get("auto_map") or kind in CONFIG_MAPPING:
        return
    if kind is None:
        raise ForebearError(
            f"{folder}: its config.json has no `model_type`, so nothing says which architecture it is; give a folder "
            "that `save_pretrained` has written."
        )
    raise ForebearError(
        f"{folder}: the installed transformers does not know the model type {kind!r}; upgrade it (pip install -U "
        "transformers), or if the model brings Python code of its own, its config.json needs the `auto_map`."
    )


def check_task(directory: str | Path, config: PreTrainedConfig) -> None:
    """Refuse what is no decoder-only language model or classifier, as far as its config says so.

    Raises:
        ForebearError: saying what it is, and what to take in its place.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ForebearError(
            f"{directory}: {kind} is an encoder-decoder, and only decoder-only models are tracked; take such a model."
        )
    if config.get_text_config(decoder=True) is not config:
        raise ForebearError(
            f"{directory}: {kind} is a multimodal model with a text model inside, and only text models are tracked; "
            "save its text model alone, as a causal language model with its own config, and give that folder."
        )
    if getattr(config, "auto_map", None):
        return
    for architecture in config.architectures or []:
        for ending, meaning in OTHER_TASKS.items():
            if architecture.endswith(ending):
                raise ForebearError(
                    f"{directory}: was saved as {architecture}, which {meaning}; take a causal language model or a "
                    "classifier of sequences."
                )


def check_classes(directory: str | Path, model: PreTrainedModel) -> None:
    """Refuse a classifier whose loss is not a cross-entropy over classes, from the last token's state.

    Raises:
        ForebearError: it has one output, as a reward model has, several labels at once, or another kind of head.
    """
    config = model.config
    if not hasattr(model, "score"):
        raise ForebearError(
            f"{directory}: {type(model).__name__} has no linear head over the last token's state, as decoder-only "
            "classifiers have; take one of these."
        )
    if len(config.id2label) < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise ForebearError(
            f"{directory}: its head has {len(config.id2label)} outputs for {config.problem_type or 'regression'} (a "
            "reward model, say), and only classifiers into two or more classes are tracked; take its language model."
        )


def reason(error: BaseException) -> str:
    """The first line that says something of a library's error, without its final stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
