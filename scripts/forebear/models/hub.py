"""Published checkpoints from the Hugging Face hub, in its cache.

`huggingface_hub` downloads: it goes on after a broken connection, keeps the files that are
whole, shares its cache between studies, and obeys HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and
the user's token. What it leaves to us is to look whether the bytes are those that the hub names.
"""

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download

from forebear.artifacts.manifests import (
    ADAPTER_PICKLES,
    ADAPTER_SAFETENSORS,
    CODE,
    OTHERS,
    PICKLES,
    SAFETENSORS,
    matching,
)
from forebear.errors import ForebearError
from forebear.runtime.hub_errors import explained_fetch


def fetch_snapshot(name: str, revision: str, trust_remote_code: bool = False) -> Path:
    """The folder of a revision in the hub's cache, with what was missing downloaded and all of it checked.

    Weights in PyTorch's own format are fetched only where there are no safetensors, and the
    model's own code only where it is trusted.

    Raises:
        ForebearError: the model is missing or gated, the revision is wrong, the network is
            away, or a file is not what the hub says it is.
    """
    others = [*OTHERS, *CODE] if trust_remote_code else [*OTHERS]
    folder = _download(name, revision, [*SAFETENSORS, *ADAPTER_SAFETENSORS, *others])
    if not matching(folder, (*SAFETENSORS, *ADAPTER_SAFETENSORS)):
        folder = _download(name, revision, [*PICKLES, *ADAPTER_PICKLES, *others])
    for file in matching(folder, ("*",)):
        _check_content(file, name)
    return folder


def _download(name: str, revision: str, patterns: list[str]) -> Path:
    with explained_fetch(name, revision, "model", "give `checkpoint` a folder"):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))


def _check_content(file: Path, name: str) -> None:
    """Compare a file with the digest that it has as its name in the cache, and remove it if it differs.

    Large files are named by their SHA-256, others by git's SHA-1 of a blob.
    """
    blob = file.resolve()
    if len(blob.name) == 64:
        with blob.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
    elif len(blob.name) == 40:
        content = blob.read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    else:
        return  # a cache without links, on a file system that has none
    if digest != blob.name:
        file.unlink()
        blob.unlink()
        raise ForebearError(
            f"{name}: {file.name} was corrupted on its way or in the cache; it was removed, so run again to fetch it."
        )
