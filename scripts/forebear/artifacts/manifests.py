"""The manifest of a checkpoint: what made it, and the digests of its files."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from forebear.artifacts.digests import file_digest
from forebear.errors import ForebearError, removal
from forebear.runtime.atomic import atomic_path

NAME = "manifest.json"

# What a checkpoint's files are called.
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")
# Config, tokenizer, index of the shards.
OTHERS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.vocab", "*.bpe", "*.codes")
ADAPTER_SAFETENSORS = ("adapter_model.safetensors",)
ADAPTER_PICKLES = ("adapter_model.bin",)
CODE = ("*.py",)  # a model's own, there only where the study's `trust_remote_code` is on


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder that match one of some patterns."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def find_weights(directory: Path, stem: str = "model", suffix: str = "safetensors") -> list[Path]:
    """The files of a checkpoint's weights: one, or the shards that its index names.

    Where both are there, the one file counts, as for transformers.

    Args:
        stem: "model" or "pytorch_model", whose suffix is "bin".

    Raises:
        ForebearError: a file is missing, or the index is damaged.
    """
    index = directory / f"{stem}.{suffix}.index.json"
    names = [f"{stem}.{suffix}"]
    if index.is_file() and not (directory / names[0]).is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ForebearError(f"{index}: cannot be read as an index of weights ({error}); fetch it again.") from error
    for name in names:
        if not (directory / name).is_file():
            raise ForebearError(f"{directory / name}: a file of the weights is missing; complete the checkpoint.")
    return [directory / name for name in names]


def write_manifest(directory: Path, facts: dict) -> None:
    """Write the manifest, last of all files: it marks the directory complete."""
    files = {
        file.name: file_digest(file)
        for file in matching(directory, (*SAFETENSORS, *OTHERS, *CODE))
        if file.name != NAME
    }
    content = {"model_digest": weights_digest([files[file.name] for file in find_weights(directory)]), **facts}
    with atomic_path(directory / NAME) as path:
        path.write_text(json.dumps({**content, "files": files}, indent=2) + "\n", encoding="utf-8")


def read_manifest(path: str | Path) -> dict:
    """A manifest, after checking that the files beside it are those that it names."""
    path = Path(path)
    # What a cache of outputs gave back is a link for each file; otherwise links lead to a user's own files.
    remedy = "delete it and run again: " + (
        removal(*sorted(path.parent.iterdir())) if path.is_symlink() else removal(path.parent)
    )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, digest in content["files"].items() if file_digest(path.parent / name) != digest]
        weights = weights_digest([content["files"][file.name] for file in find_weights(path.parent)])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ForebearError(f"{path}: the model there is damaged ({error}); {remedy}") from error
    if weights != content["model_digest"]:
        changed.append(NAME)
    if changed:
        raise ForebearError(f"{path.parent}: {', '.join(changed)} is not what was written there; {remedy}")
    return content


def weights_digest(digests: Sequence[str]) -> str:
    """The digest of weights: that of their file, or the SHA-256 of their shards' digests in their order."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def point_digests(manifest: str | Path, records: str | Path) -> dict[str, str]:
    """What artifacts made from a checkpoint and a data file carry."""
    return {"model_digest": read_manifest(manifest)["model_digest"], "data_digest": file_digest(records)}
