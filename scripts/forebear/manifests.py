"""The manifest of a checkpoint: what made it, and the digest of its weights."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from forebear.datasets import file_digest
from forebear.errors import ForebearError
from forebear.writing import atomic_path

NAME = "manifest.json"

# What a checkpoint's files are called.
SAFETENSORS = ("model.safetensors", "model-*.safetensors")
PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")
OTHERS = ("*.json", "*.txt", "*.model", "*.jinja")  # config, tokenizer, index of the shards


def matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of a folder that match one of some patterns."""
    return sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})


def find_weights(directory: Path) -> list[Path]:
    """The files of a checkpoint's weights: one, or the shards that its index names.

    Raises:
        ForebearError: a file is missing.
    """
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file() and not (directory / names[0]).is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if not (directory / name).is_file():
            raise ForebearError(f"{directory / name}: a file of the weights is missing; complete the checkpoint.")
    return [directory / name for name in names]


def weights_digest(directory: Path) -> str:
    """SHA-256 of the weights, or of the shards' digests in their order."""
    digests = [file_digest(file) for file in find_weights(directory)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def write_manifest(directory: Path, facts: dict) -> None:
    """Write the manifest, last of all files: it marks the directory complete."""
    content = {"model_digest": weights_digest(directory), **facts}
    with atomic_path(directory / NAME) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(path: str | Path) -> dict:
    """A manifest, after checking that the weights beside it are those that it names."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = weights_digest(path.parent)
    except (OSError, json.JSONDecodeError) as error:
        raise ForebearError(f"{path}: cannot be read ({error}); delete {path.parent} and run again.") from error
    if digest != content["model_digest"]:
        raise ForebearError(
            f"{path.parent}: its weights are not those that {NAME} names; delete {path.parent} and run again."
        )
    return content


def point_digests(manifest: str | Path, records: str | Path) -> dict[str, str]:
    """What artifacts made from a checkpoint and a data file carry."""
    return {"model_digest": read_manifest(manifest)["model_digest"], "data_digest": file_digest(records)}
