"""docs/reruns.md says of every config key and every module what runs again after an edit there."""

import re
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

import reruns
from copies import ROOT
from forebear.artifacts.code_digest import SILENT, engine_digest, engine_modules
from forebear.config.reading import reference

SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# These make another stage of it, under files of its own.
STRUCTURE = {"stages[].name", "stages[].task", "stages[].checkpoint"}
PASSES = {"compute_pairwise_scores", "gather_scores"}
# Edits that reach only some of a rule's jobs: those of one stage, or of one pass.
PARTLY = {
    "`stages[1].training`": {
        "train_stage",
        "fit_covariances",
        "compute_eigenbasis",
        "fit_eigenvalues",
        "gather_factors",
    },
    "`stages[1].damping`": {"precondition_queries", *PASSES},
    "`stages[1].alpha`": {"precondition_queries", *PASSES},
    "`estimators`, one more": PASSES,
    "`solvers`": PASSES,
    **{key: {"prepare_data"} for key in reruns.FILES},
}


def test_every_key_of_a_study_has_a_row():
    keys = set(re.findall(r"^\| `studies\.\*\.(.+?)` ", reference(), re.M)) - {"stages", "ground_truth", "cost"}
    rows = {re.sub(r"\[\d\]", "[]", row.split("`")[1]) for row, *_ in reruns.table(reruns.KEYS)} | STRUCTURE
    assert {key for key in keys if not any(key == row or key.startswith(f"{row}.") for row in rows)} == set()


@pytest.mark.parametrize("row", [*reruns.EDITS, *reruns.FILES, *(f"other {row}" for row in reruns.FILES)])
def test_an_edit_of_a_key_changes_the_recipes_that_the_page_says(row: str):
    told = {key: reruns.rules(cell) for key, cell, _ in reruns.table(reruns.KEYS)}
    found, key = reruns.rerun_by_key(row), row.removeprefix("other ")
    assert set(found) == told[key]
    assert {rule for rule, all_of_its_jobs in found.items() if not all_of_its_jobs} == PARTLY.get(key, set())


def test_the_pages_tables_are_those_of_the_workflow():
    """Each module in one row, with all that uses it and follows; `python tests/reruns.py` writes them."""
    page = reruns.PAGE.read_text(encoding="utf-8")
    assert page.splitlines() == reruns.written(page).splitlines()


def test_a_digest_covers_all_that_its_script_imports():
    for script in SCRIPTS:
        finder = ModuleFinder([str(ROOT / "scripts")])
        finder.run_script(str(script))
        files = {Path(module.__file__) for module in finder.modules.values() if module.__file__}
        imported = {file.relative_to(reruns.ENGINE) for file in files if file.is_relative_to(reruns.ENGINE)}
        loud = {file for file in imported if file.parts[0].removesuffix(".py") not in SILENT}
        assert engine_modules(script) == {file for file in loud if file.name != "__init__.py"}, script


def test_every_rule_has_the_digest_of_its_own_script():
    for study in (*reruns.EDITS, *reruns.STUDIES):
        for path, made in reruns.files_of(study).items():
            assert made.engine == engine_digest(ROOT / f"scripts/{made.script}.py"), path
