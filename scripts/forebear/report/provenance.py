"""What a study's results were made from: config, versions, seeds, digests, and what every job took.

Nothing is read from the environment, so no token or password can get in.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

import forebear
from forebear.artifacts.digests import file_digest
from forebear.artifacts.hdf5 import open_checked
from forebear.artifacts.manifests import NAME
from forebear.errors import ForebearError
from forebear.runtime.job import RECORD
from forebear.runtime.receipts import read_receipt, versions


def gather_provenance(
    study: str, config: Mapping, seeds: Mapping[str, int], files: Sequence[str | Path], results: Path
) -> dict:
    """Everything that is known of where a study's results come from.

    Args:
        config: the study's section of the config, with its defaults.
        files: artifacts, tables and figures.
        results: the folder of all studies' results; the study's `logs` below it are also of jobs that an
            earlier config asked for.

    Returns:
        `versions`: of today; `files`: path → SHA-256 and bytes, what HDF5 artifacts and manifests say of
        themselves, the recipe, and as `other_versions` those of libraries that were others when the file was made;
        `jobs`: rule/job → wall time in seconds, peak memory in bytes, device; `cached` marks jobs
        whose outputs came from Snakemake's cache.
    """
    logs = results / study / "logs"
    now = {"forebear": forebear.__version__, **versions()}
    return {
        "study": study,
        "config": config,
        "seeds": seeds,
        "versions": now,
        "platform": platform.platform(),
        "files": {str(path): _describe(Path(path), results, now) for path in files},
        "jobs": {
            str(log.relative_to(logs).with_suffix("")): record
            for log in sorted(logs.rglob("*.log"))
            if (record := _read_record(log)) is not None
        },
    }


def _describe(path: Path, results: Path, now: Mapping[str, str]) -> dict:
    try:
        described = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    except OSError as error:
        raise ForebearError(f"{path}: cannot be read ({error}); run the rule that makes it.") from error
    if path.suffix == ".h5":
        with open_checked(path, None, content=False) as file:
            described |= _attributes(file)
            described |= {name: _attributes(group) for name, group in file.items() if group.attrs}
    elif path.name == NAME:
        described |= json.loads(path.read_text(encoding="utf-8"))
    if receipt := read_receipt(path, results):
        described["recipe"] = receipt["recipe"]
        others = {name: made for name, made in receipt["versions"].items() if now.get(name) != made}
        described |= {"other_versions": others} if others else {}
    return described


def _attributes(item: h5py.Group) -> dict:
    """Without `blocks`, a long list that follows from the model."""
    found = {key: value.item() if isinstance(value, np.generic) else value for key, value in item.attrs.items()}
    return {key: value for key, value in found.items() if key != "blocks"}


def _read_record(log: Path) -> dict | None:
    """A job's record, the last one of its log; None for a job that has not ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines:
        return {"cached": True}
    records = [line.removeprefix(RECORD) for line in lines if line.startswith(RECORD)]
    return json.loads(records[-1]) if records else None
