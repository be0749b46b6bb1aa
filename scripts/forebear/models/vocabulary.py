"""The tokenizer of a checkpoint: there as a whole, and in step with the embedding."""

from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from forebear.artifacts.manifests import matching
from forebear.errors import ForebearError
from forebear.models.inspection import check_whole, read_json

COMPLETE = ("tokenizer.json", "*.model", "*.tiktoken", "*.spm", "*.vocab", "vocab.txt", "tekken.json")
PAIR = ("vocab.json", "merges.txt")  # of a byte-level BPE; each means nothing without the other
REMEDY = "copy the tokenizer's files from the model that it was trained from, or save them with `save_pretrained`"
INSTALL = 'pip install -e ".[tokenizers]"'


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has a tokenizer of its own, whole or not."""
    return bool(matching(folder, (*COMPLETE, *PAIR)))


def check_tokenizer_files(folder: Path, trust_remote_code: bool = False) -> None:
    """Refuse a folder whose tokenizer is not there as a whole, by its files.

    Raises:
        ForebearError: naming what is missing.
    """
    check_whole(matching(folder, (*COMPLETE, *PAIR, "tokenizer_config.json")))
    found = matching(folder, COMPLETE)
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")
        return
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if (settings.get("auto_map") or {}).get("AutoTokenizer"):
        if trust_remote_code:
            return
        raise ForebearError(
            f"{folder}: its tokenizer exists only as Python code of the model's own, which is not run; read that code, "
            "and if you trust it, set `trust_remote_code: true` in the study."
        )
    pair = [(folder / name).is_file() for name in PAIR]
    if any(pair) and not all(pair) and not found:
        there, missing = PAIR if pair[0] else PAIR[::-1]
        raise ForebearError(f"{folder}: its tokenizer is incomplete: {there} is there without {missing}; {REMEDY}.")
    if not found and not any(pair):
        beside = " but tokenizer_config.json" if settings else ""
        raise ForebearError(
            f"{folder}: has no tokenizer{beside}: neither tokenizer.json, nor tokenizer.model, nor vocab.json with "
            f"merges.txt; {REMEDY}."
        )


def check_vocabulary(directory: Path, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Refuse a tokenizer that knows nothing but special tokens, or that knows more tokens than the model.

    What a library makes of files that it cannot read has special tokens alone.

    Args:
        rows: of the embedding; None where that is not known.

    Raises:
        ForebearError: with both numbers, or with the packages that are missing.
    """
    vocabulary = tokenizer.get_vocab()
    added = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    if not set(vocabulary) - added - set(tokenizer.all_special_tokens) - {"▁", ""}:
        raise ForebearError(f"{directory}: its tokenizer knows no words, {_why_empty(directory)}.")
    # A library may add special tokens that nothing uses, such as one for padding; `position_logits` sees to the data's.
    used = {tokenizer.bos_token, tokenizer.eos_token}
    unused = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} - used
    numbers = [number for token, number in vocabulary.items() if token not in unused]
    if rows is not None and (most := max(numbers) + 1) > rows:
        raise ForebearError(
            f"{directory}: its tokenizer has {most} tokens, but the model's embedding has {rows} rows; take the "
            "tokenizer that belongs to the model, or resize the embedding (`resize_token_embeddings`) and save both."
        )


def missing_packages() -> list[str]:
    """What reads tokenizers that have no tokenizer.json, and is not installed."""
    names = {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf", "tiktoken": "tiktoken"}
    return [package for module, package in names.items() if not _installed(module)]


def needs_packages(directory: Path) -> str | None:
    """A remedy, where there is no tokenizer.json and a package that reads other formats is not installed."""
    missing = missing_packages()
    if (directory / "tokenizer.json").is_file() or not missing:
        return None
    return f"it has no tokenizer.json, and reading others needs {', '.join(missing)}; install: {INSTALL}"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _why_empty(directory: Path) -> str:
    return f"since {needs_packages(directory) or f'its files are damaged or of another kind; {REMEDY}'}"
