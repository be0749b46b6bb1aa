"""What a finished file says of its making: its recipe, those of all that it was made from, and versions of libraries.

A receipt lies under the study's folder `.recipes`, by the name of its file. Only a job that ended well
leaves receipts, and no job takes two inputs that were made from different makings of one file.
"""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from forebear.errors import ForebearError
from forebear.runtime.atomic import atomic_path

FOLDER = ".recipes"
# Libraries that make numbers or files.
LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "h5py", "pandas", "bm25s", "snakemake")


def receipt_path(path: str | Path, results: str | Path) -> Path | None:
    """Where the receipt of a file lies: {results}/{study}/.recipes/….json; None for a file that is no study's."""
    if not Path(path).is_relative_to(results):
        return None
    study, *rest = Path(path).relative_to(results).parts
    return Path(results, study, FOLDER, *rest[:-1], f"{rest[-1]}.json") if rest else None


def file_of(receipt: Path, results: str | Path) -> Path:
    """The file that a receipt is about."""
    study, _, *rest = receipt.relative_to(results).parts
    return Path(results, study, *rest[:-1], rest[-1].removesuffix(".json"))


def read_receipt(path: str | Path, results: str | Path) -> dict | None:
    """The receipt of a file; None where there is none, as of what Snakemake's cache gave back."""
    receipt = receipt_path(path, results)
    with suppress(OSError, ValueError):
        return json.loads(receipt.read_text(encoding="utf-8")) if receipt else None
    return None


def versions() -> dict[str, str]:
    """Of Python and LIBRARIES, as they are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def joined_makings(inputs: Iterable[str], results: str | Path) -> dict[str, str]:
    """File → recipe, of some inputs and of all that they were made from, as far as there are receipts.

    Args:
        results: the folder of all studies' results.

    Raises:
        ForebearError: two inputs were made from different makings of one file.
    """
    joined: dict[str, str] = {}
    told_by: dict[str, str] = {}
    for path in map(str, inputs):
        receipt = read_receipt(path, results)
        for name, recipe in ({**receipt["made_from"], path: receipt["recipe"]} if receipt else {}).items():
            if joined.setdefault(name, recipe) != recipe:
                raise ForebearError(
                    f"{path} and {told_by[name]} were made from different makings of {name} (another config, code or "
                    f"data), so they do not go together; remove both and run again: rm {path} {told_by[name]}"
                )
            told_by.setdefault(name, path)
    return joined


def write_receipts(outputs: Iterable[str], results: str | Path, recipe: str, made_from: Mapping[str, str]) -> None:
    """Leave the receipts of a job's files."""
    content = {"recipe": recipe, "versions": versions(), "made_from": dict(made_from)}
    for output in outputs:
        if (receipt := receipt_path(output, results)) is None:  # where an importing workflow put it
            continue
        with atomic_path(receipt) as path:
            path.write_text(json.dumps({**content, "mtime_ns": os.lstat(output).st_mtime_ns}), encoding="utf-8")
