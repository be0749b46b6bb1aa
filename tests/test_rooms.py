"""Data flows one way through the rooms of the engine, and imports say so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from copies import ROOT

ENGINE = ROOT / "scripts/forebear"
# Room → the rooms that it may import. docs/architecture.md draws them.
BASE = ("errors", "runtime")
DATA = (*BASE, "artifacts", "data")
MODELS = (*DATA, "models")
GRADIENTS = (*MODELS, "gradients")
QUERIES = (*GRADIENTS, "planning", "factors", "queries")
SCORES = (*QUERIES, "estimators", "scores")
ALLOWED = {
    "errors": (),
    "estimators": (),
    "runtime": BASE,
    "artifacts": (*BASE, "artifacts"),
    "config": (*BASE, "estimators", "config"),
    "data": DATA,
    "models": MODELS,
    "gradients": GRADIENTS,
    "planning": (*GRADIENTS, "planning"),
    "factors": (*GRADIENTS, "factors"),
    "queries": (*QUERIES, "estimators"),
    "scores": SCORES,
    "ground_truth": (*MODELS, "ground_truth"),
    "evaluation": (*SCORES, "ground_truth", "evaluation"),
    "figures": ("errors", "estimators", "figures"),
    "report": (*MODELS, "estimators", "report"),
    "workflow": (*QUERIES, "config", "estimators", "workflow"),
}
RULES = {"errors", "estimators", "config", "workflow"}  # rooms that rules may import, and these modules:
MODULES_FOR_RULES = {"artifacts.code_digest", "artifacts.versions", "data.sources", "runtime.receipts"}


def imported(source: str) -> Iterator[str]:
    """Dotted names of modules that a file imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def room_of(path: Path) -> str:
    return path.relative_to(ENGINE).with_suffix("").parts[0]


def modules() -> list[Path]:
    return [path for path in sorted(ENGINE.rglob("*.py")) if path != ENGINE / "__init__.py"]


def test_every_room_says_what_it_may_import():
    assert {room_of(path) for path in modules()} == set(ALLOWED)


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_those_before_it(room: str):
    for path in modules():
        if room_of(path) == room:
            names = [name.split(".") for name in imported(path.read_text(encoding="utf-8"))]
            used = {name[1] for name in names if name[0] == "forebear" and len(name) > 1}
            assert used <= set(ALLOWED[room]), path
            assert "snakemake" not in {name[0] for name in names}, path


def test_no_modules_import_each_other():
    imports = {
        path: {
            ENGINE / Path(*name.split(".")[1:-1], f"{name.split('.')[-1]}.py")
            for name in imported(path.read_text("utf-8"))
            if name.startswith("forebear.")
        }
        for path in modules()
    }
    left = {path: found & set(imports) for path, found in imports.items()}
    while free := [path for path, found in left.items() if not found & set(left)]:
        for path in free:
            del left[path]
    assert not left


def test_packages_have_no_code_of_their_own():
    """A digest of code does not see them, and importing a room costs nothing."""
    for path in ENGINE.rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree)
        assert [ast.unparse(node) for node in tree.body[1:] if "__version__" not in ast.unparse(node)] == [], path


def test_rules_import_only_what_is_for_them():
    for path in (ROOT / "rules").glob("*.smk"):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        names = {line[1].removeprefix("forebear.") for line in lines if line[:1] == ["from"] and "forebear" in line[1]}
        assert {name for name in names if name.split(".")[0] not in RULES} <= MODULES_FOR_RULES, path
