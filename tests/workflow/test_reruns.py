"""What Snakemake plans after an edit of each config key and engine module is what docs/reruns.md says."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from copies import ROOT, copy_workflow
from forebear.artifacts.code_digest import SILENT
from forebear.config.reading import reference
from plans import Planner, pretend_finished

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/reruns.md").read_text(encoding="utf-8")
TINY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
# One estimator of every kind: in one pass with others, in a pass of its own, made from another,
# solved for, from retrained models, from hidden states.
ESTIMATORS = ["multistage-ekfac", "multistage-relatif", "multistage-pcg", "singlestage-ekfac", "trak", "embedding"]
LINE = json.dumps({"prompt": "a", "completion": "b"}) + "\n"


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, without its first two lines."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


NAMES = dict(table("Names used below"))


def rules(cell: str) -> set[str]:
    """The rules that a cell stands for."""
    if cell == "nothing":
        return set()
    parts = [part.strip() for part in cell.split(",")]
    return set().union(*({part.strip("`")} if part.startswith("`") else rules(NAMES[part]) for part in parts))


KEYS = {row[0]: rules(row[1]) for row in table("An edit in config.yaml")}
MODULES = {row[0].strip("`"): rules(row[1]) for row in table("An edit in the engine")}
OTHERS = {
    row[0].strip("`"): (row[1].strip("`"), rules(row[2])) for row in table("An edit in the engine of other studies")
}
UNUSED = {"compression", "ensemble", "gathering", "rescoring"}  # by this study
CONFIG = {"config", "study_config", "corpus_config", "expected", "recipes"}
NOTHING = {*SILENT, *UNUSED, *CONFIG, "provenance", "__init__"}
STUDIES = {
    "bloom": "results/bloom/evaluation.csv",
    "dolly": "results/dolly/evaluation.csv",
    "validation": "results/figures/spearman_cg.png",
}


@pytest.fixture(scope="module")
def planner():
    planner = Planner()
    yield planner
    planner.close()


def planned_rules(planner: Planner, folder: Path) -> set[str]:
    """What would run, without the rules that follow every edit."""
    return planner.rules(folder) - {"gather_provenance", "write_config"}


def study(config: dict) -> dict:
    return config["studies"]["tiny"]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, planner) -> Path:
    """The tiny study, as good as finished."""
    config = yaml.safe_load(yaml.safe_dump(TINY))
    study(config)["estimators"] = ESTIMATORS
    return pretend_finished(copy_workflow(tmp_path_factory.mktemp("embedded"), config), planner)


@pytest.fixture(scope="module")
def own_files(tmp_path_factory, planner) -> Path:
    """The same study on files of the user's, as good as finished."""
    config = yaml.safe_load(yaml.safe_dump(TINY))
    documents = {"pretraining": "documents.jsonl", "finetuning": "pairs.jsonl"}
    study(config).update(estimators=ESTIMATORS, corpus={"documents": documents, "queries": "queries.jsonl"})
    folder = copy_workflow(tmp_path_factory.mktemp("files"), config)
    for name in [*documents.values(), "queries.jsonl"]:
        (folder / name).write_text(LINE)
    return pretend_finished(folder, planner)


def changed(source: Path, target: Path, path: str, value: object) -> Path:
    """A copy of a finished study with another value of a key such as stages[1].alpha."""
    shutil.copytree(source, target, copy_function=shutil.copy2)
    config = yaml.safe_load((target / "config.yaml").read_text())
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path)]
    place = study(config)
    for part in parents:
        place = place[part]
    place[last] = value
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


EDITS = {
    "`corpus`, of an embedded one": {**study(TINY)["corpus"], "countries": 9},
    "`model`": {**study(TINY)["model"], "hidden_size": 32},
    "`max_length`": 24,
    "`chat`": {"loss": "last"},
    "`stages[0].training`": {**study(TINY)["stages"][0]["training"], "epochs": 3},
    "`stages[1].training`": {**study(TINY)["stages"][1]["training"], "epochs": 3},
    "`stages[0].damping`": 0.1,
    "`stages[1].damping`": 0.2,
    "`stages[1].alpha`": 0.3,
    "`attributed_stages`": ["finetuning"],
    "`estimators`, one more": [*ESTIMATORS, "gradient-dot"],
    "`estimators`, one less": ESTIMATORS[:-1],
    "`split_heads`": True,
    "`label_samples`": 2,
    "`batch_tokens`": 256,
    "`ground_truth.subsets`": 6,
    "`ground_truth.fraction`": 0.4,
    "`ground_truth.repeats`": 4,
    "`ground_truth.shards`": 3,
    "`ground_truth.accept_other_versions`": True,
    "`compression`": {"rank": 2},
    "`cost`": {"sizes": [{"hidden_size": 8}, {"hidden_size": 12}, {"hidden_size": 20}]},
    "`sweep`": {"own": [0.1, 1.0]},
    "`trak`": {**study(TINY)["trak"], "members": 3},
    "`solvers`": {**study(TINY)["solvers"], "iterations": 4},
    "`ensemble`": {"members": 2},
    "`top`": 3,
    "`seed`": 1,
    "`training_seed`": 1,
    "`shards`": 3,
    "`threads`": 2,
    "`gpus`": 1,
    "`precision`": "bfloat16",
    "`trust_remote_code`": True,
    "`memory`": 2,
}
FILES = {
    "`corpus.documents`, another file or an edit in it": ("documents.jsonl", "corpus.documents.pretraining"),
    "`corpus.queries`, another file or an edit in it": ("queries.jsonl", "corpus.queries"),
}
# These make another stage of it, under files of its own.
STRUCTURE = {"stages[].name", "stages[].task", "stages[].checkpoint"}


def test_every_row_of_the_page_is_tried():
    assert set(KEYS) == {*EDITS, *FILES}


def test_every_key_of_a_study_has_a_row():
    keys = set(re.findall(r"^\| `studies\.\*\.(.+?)` ", reference(), re.M)) - {"stages", "ground_truth", "cost"}
    rows = {re.sub(r"\[\d\]", "[]", row.split("`")[1]) for row in KEYS} | STRUCTURE
    assert {key for key in keys if not any(key == row or key.startswith(f"{row}.") for row in rows)} == set()


@pytest.mark.parametrize("row", EDITS)
def test_an_edit_of_a_key_reruns_what_the_page_says(embedded, planner, tmp_path, row: str):
    folder = changed(embedded, tmp_path / "edited", row.split("`")[1], EDITS[row])
    assert planned_rules(planner, folder) == KEYS[row]


@pytest.mark.parametrize("row", FILES)
def test_an_edit_in_a_file_reruns_what_the_page_says(own_files, planner, tmp_path, row: str):
    folder = shutil.copytree(own_files, tmp_path / "edited", copy_function=shutil.copy2)
    with (folder / FILES[row][0]).open("a") as handle:
        handle.write(LINE)
    assert planned_rules(planner, folder) == KEYS[row]


@pytest.mark.parametrize("row", FILES)
def test_another_file_reruns_what_the_page_says(own_files, planner, tmp_path, row: str):
    folder = changed(own_files, tmp_path / "edited", FILES[row][1], "others.jsonl")
    (folder / "others.jsonl").write_text(LINE * 2)
    assert planned_rules(planner, folder) == KEYS[row]


def edited(source: Path, target: Path, *modules: str) -> Path:
    """A copy of a finished study with one more line of code in some modules."""
    folder = shutil.copytree(source, target, copy_function=shutil.copy2)
    for module in modules:
        with (folder / f"scripts/forebear/{module}.py").open("a") as handle:
            handle.write("\nUNUSED = 1\n")
    return folder


def test_every_module_has_a_row_or_is_said_to_rerun_nothing():
    assert {*MODULES, *OTHERS, *NOTHING} == {path.stem for path in (ROOT / "scripts/forebear").glob("*.py")}


@pytest.mark.parametrize("module", MODULES)
def test_an_edit_of_a_module_reruns_what_the_page_says(embedded, planner, tmp_path, module: str):
    folder = edited(embedded, tmp_path / "edited", module)
    assert planned_rules(planner, folder) == MODULES[module]


def test_an_edit_of_all_other_modules_reruns_nothing(embedded, planner, tmp_path):
    others = {*OTHERS, *NOTHING} - {*MODULES}
    assert planned_rules(planner, edited(embedded, tmp_path / "edited", *others)) == set()


@pytest.mark.parametrize(("study", "target"), STUDIES.items())
def test_an_edit_of_a_module_of_other_studies_reruns_what_the_page_says(planner, tmp_path, study: str, target: str):
    config = yaml.safe_load((ROOT / f"studies/{study}.yaml").read_text())
    folder = pretend_finished(copy_workflow(tmp_path / "finished", config), planner, target)
    every = planner.rules(folder, "--forceall", target)
    for module in (module for module, (of, _) in OTHERS.items() if of == study):
        planned = planner.rules(edited(folder, tmp_path / module, module), target)
        assert planned == OTHERS[module][1] & every
