"""What a finished file says of its making: its recipe, those of all that it was made from, and versions of libraries.

A receipt lies under the study's folder `.recipes`, by the name of its file. Only a job that ended well
leaves receipts; where Snakemake's cache gives a file back, it gives the receipt too. And no job takes two inputs that were made from different makings of one file.
"""

import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from forebear.errors import ForebearError
from forebear.runtime.atomic import atomic_path
from forebear.runtime.versions import NUMERIC, versions_of

FOLDER = ".recipes"
# Libraries that make numbers or files.
LIBRARIES = (*NUMERIC, "h5py", "pandas", "bm25s", "snakemake")


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
    """The receipt of a file; None where there is none, as of a file that nobody makes."""
    receipt = receipt_path(path, results)
    with suppress(OSError, ValueError):
        return json.loads(receipt.read_text(encoding="utf-8")) if receipt else None
    return None


def versions() -> dict[str, str]:
    """Of Python and LIBRARIES, as they are installed."""
    return {"python": platform.python_version(), **versions_of(LIBRARIES)}


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
    """Leave the receipts of a job's files, which may be among its outputs themselves."""
    content = json.dumps({"recipe": recipe, "versions": versions(), "made_from": dict(made_from)})
    for output in outputs:
        receipt = None if FOLDER in Path(output).parts else receipt_path(output, results)
        if receipt is not None:  # an importing workflow may put files elsewhere
            with atomic_path(receipt) as path:
                path.write_text(content, encoding="utf-8")
