"""Copies of the workflow, in which tests run it."""

import os
import shutil
import subprocess
from pathlib import Path

import yaml

from snakemake_server import run_snakemake

ROOT = Path(__file__).parents[1]


def smoke_config() -> dict:
    """The config of the smallest study that has a job of every kind: tests/tiny.yaml with fewer estimators.

    What a tiny study takes is its jobs, each of which imports its libraries.
    """
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    estimators = ["multistage-ekfac", "multistage-relatif", "multistage-pcg", "gradient-dot"]
    config["studies"]["tiny"]["estimators"] = [*estimators, "multistage-ensemble", "trak", "bm25"]
    config["studies"]["tiny"]["batch_tokens"] = 128  # several batches a pass
    return config


def copy_workflow(folder: Path, config: dict | None = None) -> Path:
    """The workflow with the tiny study or another config, as a clone of the repository would have it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Snakefile", "rules", "scripts", "profiles", "envs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    if config is None:
        shutil.copy(ROOT / "tests/tiny.yaml", folder / "config.yaml")
    else:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def snakemake(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run the workflow in `folder` on two cores, with the copy's engine rather than the installed one."""
    command = ["--cores", "2", *arguments]
    given = {**os.environ, "PYTHONPATH": str(folder / "scripts"), **environment}
    status, output = run_snakemake(folder, command, given)
    return subprocess.CompletedProcess(["snakemake", *command], status, output)
