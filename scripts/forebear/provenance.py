"""What a study's results were made from: config, versions, seeds, digests, and what every job took.

Nothing is read from the environment, so no token or password can get in.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import forebear
from forebear.errors import ForebearError
from forebear.jobs import RECORD
from forebear.manifests import NAME
from forebear.records import file_digest
from forebear.store import read_attributes

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "scipy", "h5py", "pandas", "bm25s", "snakemake")


def gather_provenance(
    study: str, config: Mapping, seeds: Mapping[str, int], files: Sequence[str | Path], logs: Path
) -> dict:
    """Everything that is known of where a study's results come from.

    Args:
        config: the study's section of the config, with its defaults.
        files: artifacts, tables and figures.
        logs: folder of the jobs' logs, also of jobs that an earlier config asked for.

    Returns:
        `files`: path → SHA-256 and bytes, and what HDF5 artifacts and manifests say of themselves;
        `jobs`: rule/job → wall time in seconds, peak memory in bytes, device; `cached` marks jobs
        whose outputs came from Snakemake's cache.
    """
    return {
        "study": study,
        "config": config,
        "seeds": seeds,
        "versions": _versions(),
        "platform": platform.platform(),
        "files": {str(path): _describe(Path(path)) for path in files},
        "jobs": {
            str(log.relative_to(logs).with_suffix("")): record
            for log in sorted(logs.rglob("*.log"))
            if (record := _read_record(log)) is not None
        },
    }


def _versions() -> dict[str, str]:
    found = {"forebear": forebear.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _describe(path: Path) -> dict:
    try:
        described = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    except OSError as error:
        raise ForebearError(f"{path}: cannot be read ({error}); run the rule that makes it.") from error
    if path.suffix == ".h5":
        described |= {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in read_attributes(path).items()
            if key != "blocks"  # a long list that follows from the model
        }
    elif path.name == NAME:
        described |= json.loads(path.read_text(encoding="utf-8"))
    return described


def _read_record(log: Path) -> dict | None:
    """A job's record, the last one of its log; None for a job that has not ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        return {"cached": True}
    records = [line.removeprefix(RECORD) for line in lines if line.startswith(RECORD)]
    return json.loads(records[-1]) if records else None
