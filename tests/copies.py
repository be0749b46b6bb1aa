"""Copies of the workflow, in which tests run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


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
    return subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "2", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "scripts"), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
