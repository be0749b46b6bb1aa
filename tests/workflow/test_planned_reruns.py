"""Snakemake plans what docs/reruns.md says: one edit of each kind, and one module of each room.

tests/test_reruns.py compares all of the page with recipes and digests.
"""

import shutil
from pathlib import Path

import pytest
import yaml

import reruns
from copies import copy_workflow
from plans import planned_rules, pretend_finished

TOLD = {key: reruns.rules(cell) for key, cell, _ in reruns.table(reruns.KEYS)}
# Of a chain, of data, of a stage's training; more of a list and less; retrainings, other rules, a page, and nothing.
KEYS = [
    "`stages[1].alpha`",
    "`corpus`, of an embedded one",
    "`stages[1].training`",
    "`estimators`, one more",
    "`estimators`, one less",
    "`ground_truth.subsets`",
    "`shards`",
    "`top`",
    "`memory`",
]
# Room → its first module on the page, and what reruns after an edit of it.
MODULES = {
    names.split(".")[0].strip("`"): (names.split(",")[0].strip("`"), reruns.rules(again))
    for names, again in reversed(reruns.table(reruns.MODULES))
    if again != "nothing"
}
BLOOM = ["results/bloom/evaluation.csv"]


def planned(folder: Path, *targets: str) -> set[str]:
    return planned_rules(folder, *targets) - reruns.LEFT_OUT


def finished(folder: Path, study: dict) -> Path:
    """A copy of the workflow with a study that is as good as run."""
    copy_workflow(folder, {"study": "tiny", "studies": {"tiny": study}})
    return pretend_finished(folder)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> Path:
    return finished(tmp_path_factory.mktemp("embedded"), {**reruns.TINY, "estimators": reruns.ESTIMATORS})


@pytest.fixture
def workspace(embedded, tmp_path) -> Path:
    """A copy of the study, free to be edited."""
    return shutil.copytree(embedded, tmp_path / "workspace", copy_function=shutil.copy2)


@pytest.mark.parametrize("row", KEYS)
def test_an_edit_of_a_key_reruns_what_the_page_says(workspace, row: str):
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    study = reruns.edited(config["studies"]["tiny"], reruns.key_of(row), reruns.EDITS[row])
    (workspace / "config.yaml").write_text(yaml.safe_dump({**config, "studies": {"tiny": study}}))
    assert planned(workspace) == TOLD[row]


def test_an_edit_in_a_file_or_another_one_reruns_what_the_page_says(tmp_path):
    study = reruns.own_files(0)
    reruns.write_files(tmp_path, study)
    folder = finished(tmp_path, study)
    with (folder / study["corpus"]["queries"]).open("a") as handle:
        handle.write(reruns.LINE)
    row = "`corpus.queries`, another file or an edit in it"
    assert planned(folder) == TOLD[row]
    reruns.write_files(folder, study)
    assert planned(folder) == set()
    (folder / "other.jsonl").write_text(reruns.LINE * 2)
    config = {"study": "tiny", "studies": {"tiny": reruns.edited(study, reruns.FILES[row], "other.jsonl")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert planned(folder) == TOLD[row]


@pytest.mark.parametrize("room", MODULES)
def test_an_edit_of_a_module_of_each_room_reruns_what_the_page_says(workspace, room: str):
    module, again = MODULES[room]
    add_code(workspace, module)
    assert planned(workspace) == again


def test_an_edit_of_all_modules_that_rerun_nothing_reruns_nothing(workspace):
    files = reruns.plain_files()
    for module in reruns.modules():
        if not reruns.rerun_by_module(module, files):
            add_code(workspace, module)
    assert planned(workspace) == set()


def test_an_edit_of_a_module_of_another_study_reruns_what_the_page_says(tmp_path):
    again = next(row[2] for row in reruns.table(reruns.OTHERS) if "models.hub" in row[0])
    config = {"study": "bloom", "studies": {"bloom": reruns.described("bloom")}}
    folder = pretend_finished(copy_workflow(tmp_path, config), *BLOOM)
    add_code(folder, "models.hub")
    every = {made.rule for made in reruns.files_of("bloom").values()}
    assert planned(folder, *BLOOM) == reruns.rules(again) & every


def add_code(folder: Path, module: str) -> None:
    with (folder / f"scripts/forebear/{module.replace('.', '/')}.py").open("a") as handle:
        handle.write("\nUNUSED = 1\n")
