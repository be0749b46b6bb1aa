"""Models on disk: Hugging Face directories, loaded on the device of the job."""

import json
import pickle
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import forebear
from forebear.artifacts.manifests import (
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
from forebear.errors import ForebearError, shortened
from forebear.models.contexts import context_length
from forebear.models.heads import is_classifier, runs_own_code
from forebear.models.inspection import (
    ADAPTER,
    UNPACKED,
    check_classes,
    check_model_type,
    check_task,
    check_types,
    check_unpacked,
    check_whole,
    read_json,
    reason,
    weight_types,
)
from forebear.models.vocabulary import check_tokenizer_files, check_vocabulary, needs_packages
from forebear.runtime.atomic import atomic_files
from forebear.runtime.devices import device_for
from forebear.runtime.job import warn
from forebear.runtime.memory import PROCESS_BYTES, memory_for

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
        tokenizer.save_pretrained(folder, save_jinja_files=False)  # a chat template is then in tokenizer_config.json
        for file in folder.iterdir():
            if file.name not in FILES:  # others only repeat what these say
                file.unlink()
        if not (folder / "tokenizer.json").is_file():
            raise ForebearError(
                f"{directory}: its tokenizer cannot be saved as tokenizer.json, since it exists only in Python; train "
                "that stage elsewhere, and give its model as `checkpoint`."
            )


def save_model(directory: str | Path, model: PreTrainedModel) -> None:
    """Save a model alone, in one file."""
    with atomic_files(directory) as folder:
        model.save_pretrained(folder, max_shard_size=sys.maxsize)
        _refer_to_code(model, folder / "config.json")


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


def link_checkpoint(folder: Path, directory: Path, trust_remote_code: bool = False, encoder: bool = False) -> None:
    """Make `directory` a checkpoint of links to the files in `folder`, to the model's own code only if it is trusted.

    Weights in PyTorch's own format are read without executing what they contain
    (`weights_only`) and written as safetensors.

    Args:
        encoder: it is no model to be tracked, but a sentence encoder.

    Raises:
        ForebearError: config, weights or tokenizer are missing, damaged, packed, or not a language model's; or the
            model needs its own code, and that is not trusted or not there.
    """
    if not folder.is_dir():
        raise ForebearError(f"{folder}: there is no such folder; correct `checkpoint`.")
    if not (folder / "config.json").is_file():
        below = sorted({file.parent.name for name in ("config.json", ADAPTER) for file in folder.glob(f"*/{name}")})
        found = f" ({shortened(below, 3)} has one)" if below else ""
        raise ForebearError(f"{folder}: has no config.json; give a folder that `save_pretrained` has written{found}.")
    content = read_json(folder / "config.json")
    check_unpacked(folder, content)
    check_model_type(folder, content)
    if (folder / ADAPTER).is_file():
        raise ForebearError(
            f"{folder}: has weights of its own and an adapter ({ADAPTER}), and nothing says whether these are merged; "
            "move the one or the other to a folder of its own."
        )
    directory.mkdir(parents=True, exist_ok=True)
    for stale in matching(directory, ("*",)):
        stale.unlink()
    if matching(folder, SAFETENSORS):
        weights = find_weights(folder)
    elif matching(folder, PICKLES):
        weights = []
        convert_pickles(folder, directory)
    else:
        raise ForebearError(_without_weights(folder))
    for file in (*weights, *matching(folder, (*OTHERS, *(CODE if trust_remote_code else ())))):
        if file.name not in (NAME, "pytorch_model.bin.index.json"):
            (directory / file.name).symlink_to(file.resolve())
    check_types(folder, weight_types(find_weights(directory)))
    for place in _code_places(directory).values() if trust_remote_code else ():
        if "--" in place:
            raise ForebearError(
                f"{folder}: its code is in another repository ({place}); give a folder that has the code beside the "
                "weights, and its `auto_map` without a repository."
            )
    with explained_load(folder, trust_remote_code):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    if not encoder:
        check_task(folder, config)
    if not weights and not encoder:  # they may have been saved from a class that the config does not name
        _from_weights(directory, config, trust_remote_code=trust_remote_code, local_files_only=True, dtype="auto")
    check_tokenizer_files(folder, trust_remote_code)
    load_tokenizer(directory, trust_remote_code)


def _without_weights(folder: Path) -> str:
    """Why a folder has no weights that can be read, with what it has in their place."""
    others = [file.name for file in matching(folder, ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.npz"))]
    found = f" (there is {shortened(sorted(others), 3)})" if others else ""
    remedy = "save it with `save_pretrained`, which uses these names"
    if any(name.endswith(".gguf") for name in others):
        remedy = f"GGUF is usually quantised: {UNPACKED}"
    return f"{folder}: has neither safetensors nor pytorch_model.bin{found}; {remedy}."


def convert_pickles(folder: Path, directory: Path) -> None:
    """Write the weights of a folder in PyTorch's own format as model.safetensors, name by name.

    Raises:
        ForebearError: a file is not there, or holds something else than tensors.
    """
    files = find_weights(folder, "pytorch_model", "bin")
    check_whole(files)
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
            # Tensors that share memory, such as a tied head's, are written one by one.
            weights |= {name: tensor.detach().clone().contiguous() for name, tensor in content.items()}
        except (OSError, EOFError, ValueError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
            raise ForebearError(f"{file}: cannot be read as plain weights ({reason(error)}).") from error
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


# What old versions saved with the weights, and the model computes by itself; the last is of a reinforcement trainer,
# for the values of states, which the language model's outputs do not depend on.
LEFTOVERS = re.compile(
    r"\b(attn|attention|self_attn|self_attention)\.(attention\.)?(bias|masked_bias|causal_mask)$"
    r"|\b(inv_freq|cos_cached|sin_cached|position_ids|_float_tensor)$"
    r"|^v_head\."
)


def model_classes(config: PreTrainedConfig) -> list[type]:
    """Which classes a checkpoint's weights may be of: a language model's or a classifier's, both if no name says it."""
    names = config.architectures or []
    if any(name.endswith("ForSequenceClassification") for name in names):
        return [AutoModelForSequenceClassification]
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return [AutoModelForCausalLM]
    return [AutoModelForCausalLM, AutoModelForSequenceClassification]


def _from_weights(directory: str | Path, config: PreTrainedConfig, **options) -> PreTrainedModel:
    """The model of a folder all of whose weights are there, and used: transformers merely warns, or says nothing.

    Raises:
        ForebearError: naming the weights that are missing, left over, or of another shape.
    """
    problems = []
    for kind in model_classes(config):
        try:
            with explained_load(directory, options["trust_remote_code"]):
                model, loaded = kind.from_pretrained(
                    directory, output_loading_info=True, use_safetensors=True, ignore_mismatched_sizes=True, **options
                )
        except ForebearError as error:
            problems.append(str(error))
            continue
        problem = _misfit(directory, model, loaded)
        if problem is None:
            return model
        problems.append(problem)
    raise ForebearError(problems[0])


def _misfit(directory: str | Path, model: PreTrainedModel, loaded: dict) -> str | None:
    """Why a model is not that of the weights that it was loaded from."""
    kind, layers = type(model).__name__, getattr(model.config, "num_hidden_layers", None)
    left = sorted(name for name in loaded["unexpected_keys"] if not LEFTOVERS.search(name))
    if missing := sorted(loaded["missing_keys"]):
        more = f" (and has {shortened(left, 3)}, for which it has no place)" if left else ""
        return (
            f"{directory}: has no weights for {shortened(missing)} of {kind}{more}, which would be random; "
            "take a checkpoint that was saved with its head, or whose config names the class that it was saved from."
        )
    if left:
        return (
            f"{directory}: {kind}, with {layers} layers by config.json, has no place for the weights {shortened(left)}; "
            "config.json is not that of the weights: take both from one checkpoint."
        )
    if loaded["mismatched_keys"]:
        name, saved, made = sorted(loaded["mismatched_keys"])[0]
        return (
            f"{directory}: the weight {name} has the shape {list(saved)}, but config.json makes it {list(made)} in "
            f"{kind} ({len(loaded['mismatched_keys'])} weights differ so); take both from one checkpoint."
        )
    dropped = [name for name in loaded["unexpected_keys"] if name.startswith("v_head.")]
    if dropped:
        print(f"{directory}: {', '.join(sorted(dropped))} is a value head, no part of the language model, and left out")
    return None


def versions() -> dict[str, str]:
    """Of the libraries that a checkpoint depends on."""
    return {"forebear": forebear.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def check_context(model: PreTrainedModel, max_length: int) -> None:
    """Refuse sequences that are longer than the model has positions for.

    Raises:
        ForebearError: naming both lengths.
    """
    known = context_length(model)
    if known is not None and max_length > known[0]:
        raise ForebearError(
            f"`max_length` is {max_length}, but the model has {known[0]} positions (`{known[1]}`); "
            "lower the one or raise the other."
        )


@contextmanager
def explained_load(directory: str | Path, trust_remote_code: bool) -> Iterator[None]:
    """Say in a sentence why a library cannot load a checkpoint: all that runs here is the library, on a user's files."""
    try:
        yield
    except (ForebearError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ForebearError(
                f"{directory}: the model brings Python code of its own, which is not run; read that code, and if you "
                "trust it, set `trust_remote_code: true` in the study."
            ) from error
        kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        raise ForebearError(f"{directory}: the model cannot be loaded ({kind}{reason(error)}).") from error


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
    with explained_load(directory, trust_remote_code):
        if trust_remote_code:
            _check_code(directory)
        config = AutoConfig.from_pretrained(directory, **options)
    check_task(directory, config)
    options["dtype"] = getattr(torch, precision)
    device = device_for(gpus)
    if gpus > 1:
        options["device_map"] = "balanced"
    model = _from_weights(directory, config, **options)
    if is_classifier(model):
        check_classes(directory, model)
    return (model if gpus > 1 else model.to(device)).eval().requires_grad_(False)


def model_without_weights(directory: str | Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a checkpoint on the meta device, for its shapes; a classifier without `architectures` as a language model."""
    with explained_load(directory, trust_remote_code), torch.device("meta"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
        return model_classes(config)[0].from_config(config, trust_remote_code=trust_remote_code)


def warn_of_size(job: str, manifest: str | Path, memory_mb: float, loading: Mapping) -> None:
    """Warn, before a model is loaded, where it alone is more than its job asked for: a scheduler may end the job there.

    Over several GPUs a model is loaded part by part; to none or one it comes as a whole through the main memory.

    Args:
        job: as `memory.ASKED_MB` names it.
        memory_mb: what it asked for, in this attempt.
        loading: the params section that says how the job opens the model.
    """
    model = model_without_weights(Path(manifest).parent, loading["trust_remote_code"])
    precision = getattr(torch, loading.get("precision", "float32"))
    taken = PROCESS_BYTES + model.num_parameters() * precision.itemsize
    if loading["gpus"] <= 1 and taken > memory_mb * 2**20:
        warn(
            f"{job}: the model and the process alone take {taken / 2**30:.1f} GB, but the job asked for {memory_mb} MB, "
            f"where a scheduler may end it; set `memory: {memory_for(job, taken):g}` or more in the study."
        )


def load_encoder(directory: str | Path, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model without a head, such as a sentence encoder."""
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    with explained_load(directory, trust_remote_code):
        if trust_remote_code:
            _check_code(directory)
        model = AutoModel.from_pretrained(directory, use_safetensors=True, **options)
    return model.eval().requires_grad_(False)


def load_tokenizer(directory: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, whole and in step with the embedding.

    Raises:
        ForebearError: files of it are missing or damaged, what reads them is not installed, it has more tokens than
            the model, or it is Python code that is not trusted.
    """
    directory, options = Path(directory), {"trust_remote_code": trust_remote_code, "local_files_only": True}
    check_tokenizer_files(directory, trust_remote_code)
    rows = None
    try:
        with explained_load(directory, trust_remote_code):
            tokenizer = AutoTokenizer.from_pretrained(directory, **options)
            if (directory / "config.json").is_file():
                config = AutoConfig.from_pretrained(directory, **options).get_text_config(decoder=True)
                rows = getattr(config, "vocab_size", None)
    except ForebearError as error:
        if remedy := needs_packages(directory):
            raise ForebearError(f"{directory}: its tokenizer cannot be loaded: {remedy}.") from error
        raise ForebearError(str(error).replace("the model cannot", "its tokenizer cannot")) from error
    check_vocabulary(directory, tokenizer, rows)
    return tokenizer
