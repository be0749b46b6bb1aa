"""Data flows one way through the rooms of the engine, and imports say so."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from copies import ROOT

ENGINE = ROOT / "scripts/forebear"
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DRAWING = runpy.run_path(str(ROOT / "docs/draw_architecture.py"))
imported, modules, room_of = DRAWING["imported"], DRAWING["modules"], DRAWING["room_of"]
RULES = {"errors", "estimators", "config", "workflow"}  # rooms that rules may import, and these modules:
MODULES_FOR_RULES = {"runtime.versions", "artifacts.code_digest", "data.sources", "runtime.memory", "runtime.receipts"}

# Room → the rooms that its row of the page names.
NAMED = {
    room: re.findall(r"`(\w+)`", may_import)
    for room, may_import in re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", PAGE, re.M)
}


def allowed(room: str) -> set[str]:
    """A room, those that its row names, and what these may import."""
    return {room}.union(*map(allowed, NAMED[room]))


def test_every_room_says_what_it_may_import():
    assert {room_of(path) for path in modules()} == set(NAMED)


@pytest.mark.parametrize("room", NAMED)
def test_a_room_imports_only_those_before_it(room: str):
    for path in modules():
        if room_of(path) == room:
            names = [name.split(".") for name in imported(path.read_text(encoding="utf-8"))]
            used = {name[1] for name in names if name[0] == "forebear" and len(name) > 1}
            assert used <= allowed(room), path
            assert "snakemake" not in {name[0] for name in names}, path


def test_the_figure_of_the_rooms_is_drawn_from_the_code_as_it_is():
    drawn = DRAWING["FIGURE"].read_text(encoding="utf-8")
    assert drawn == DRAWING["figure"](), "run: python docs/draw_architecture.py"


def test_every_function_that_the_page_of_the_architecture_names_is_there():
    named = re.findall(r"`(\w+)\.(\w+)(?:\.(\w+))?`", PAGE)
    assert len(named) > 40
    for room, module, function in named:
        tree = ast.parse((ENGINE / room / f"{module}.py").read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert not function or function in defined, f"{room}.{module}.{function}"


def test_every_rule_that_the_page_of_the_architecture_names_is_there():
    steps = re.findall(r"^\| [^`|]+ \| ((?:`\w+`(?:, )?)+) \|", PAGE, re.M)
    named = {rule for step in steps for rule in re.findall(r"`(\w+)`", step)}
    assert len(named) > 12
    assert named <= {path.stem for path in (ROOT / "scripts").glob("*.py")}


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
