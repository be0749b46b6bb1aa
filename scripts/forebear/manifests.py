"""The manifest of a checkpoint: what made it, and the digest of its weights."""

import json
from pathlib import Path

from forebear.datasets import file_digest
from forebear.errors import ForebearError
from forebear.writing import atomic_path

NAME = "manifest.json"
WEIGHTS = "model.safetensors"


def write_manifest(directory: Path, facts: dict) -> None:
    """Write the manifest, last of all files: it marks the directory complete."""
    content = {"model_digest": file_digest(directory / WEIGHTS), **facts}
    with atomic_path(directory / NAME) as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(path: str | Path) -> dict:
    """A manifest, after checking that the weights beside it are those that it names."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = file_digest(path.parent / WEIGHTS)
    except (OSError, json.JSONDecodeError) as error:
        raise ForebearError(f"{path}: cannot be read ({error}); delete {path.parent} and run again.") from error
    if digest != content["model_digest"]:
        raise ForebearError(
            f"{path.parent / WEIGHTS}: not the weights that {NAME} names; delete {path.parent} and run again."
        )
    return content


def point_digests(manifest: str | Path, records: str | Path) -> dict[str, str]:
    """What artifacts made from a checkpoint and a data file carry."""
    return {"model_digest": read_manifest(manifest)["model_digest"], "data_digest": file_digest(records)}
