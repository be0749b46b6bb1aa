"""What would run: as Snakemake plans it, and as recipes and the graph of files say it, in copies that were never run."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from copies import snakemake

# At the end of a copy's Snakefile: all files that lead to the targets, with the workflow's own functions.
TELL = """
import json

told, waiting = {}, json.loads(Path("targets.json").read_text())
while waiting:
    path = waiting.pop()
    maker = maker_of(path)
    if maker and path not in told:
        files, *_ = maker.expand_input(dict(maker.get_wildcards(path)))
        inputs = [str(file) for file in files]
        script = Path(maker.script).stem
        told[path] = {"rule": maker.name, "recipe": recipe_of(path), "inputs": inputs, "script": script}
        told[path]["engine"] = maker.params.get("engine")
        waiting += inputs
Path("told.json").write_text(json.dumps(told))
"""


@dataclass(frozen=True)
class Made:
    """A file of the workflow."""

    rule: str
    recipe: str  # of config keys, code and data that it depends on
    inputs: list[str]
    script: str
    engine: str  # digest of the code


def made_files(folder: Path, targets: list[str]) -> dict[str, Made]:
    """Path → how it is made, of all files that lead to the targets."""
    snakefile = folder / "Snakefile"
    if TELL not in snakefile.read_text():
        snakefile.write_text(snakefile.read_text() + TELL)
    (folder / "targets.json").write_text(json.dumps(targets))
    run = snakemake(folder, "--list-rules")
    assert run.returncode == 0, run.stdout
    told = json.loads((folder / "told.json").read_text())
    return {path: Made(**made) for path, made in told.items()}


def planned_rules(folder: Path, *arguments: str) -> set[str]:
    """The rules that Snakemake would run."""
    return rules_in(snakemake(folder, "--dry-run", *arguments).stdout)


def rules_in(output: str) -> set[str]:
    """The rules that would run, of what a dry run printed."""
    assert re.search("^Job stats:|^Nothing to be done", output, re.M), output
    return set(re.findall(r"^(\w+) +\d+$", output, re.M)) - {"all", "total"}


def pretend_finished(folder: Path, *targets: str) -> Path:
    """Make Snakemake believe that everything was run: empty outputs, with its own records of code and params."""
    summary = snakemake(folder, "--summary", *targets).stdout
    for line in summary.splitlines():
        if line.startswith("results/") and "/.recipes/" not in line:
            path = folder / line.split("\t")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    run = snakemake(folder, "--touch", "--forceall", *targets)
    assert planned_rules(folder, *targets) == set(), run.stdout
    return folder
