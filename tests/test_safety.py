"""No code of the engine or a script reads pickles, runs code of a model's author, or unpacks archives."""

import ast
from pathlib import Path

import pytest

from copies import ROOT

SOURCES = sorted((ROOT / "scripts").rglob("*.py"))

# Modules that run code from data, or write where an archive says; their exceptions may be caught.
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "tarfile", "zipfile"}
FORBIDDEN_CALLS = {"eval", "exec", "unpack_archive", "read_pickle", "unsafe_load", "full_load"}


def dangers(source: str) -> list[str]:
    """What a reviewer would refuse in a piece of Python."""
    tree, found = ast.parse(source), []
    safe_options = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and _switches_code_off(node.value)
        for target in node.targets
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "trust_remote_code":
            found += [] if _is(node.value, False) else ["trust_remote_code"]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(f"imports from {node.module}")
        elif (
            isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in FORBIDDEN_MODULES
        ):
            if node.attr not in ("UnpicklingError", "BadZipFile"):
                found.append(f"uses {node.value.id}.{node.attr}")
        elif isinstance(node, ast.FunctionDef):
            found += _default_of_parameters(node)
        elif isinstance(node, ast.Call):
            found += _dangers_of_call(node, safe_options)
    return found


def _dangers_of_call(node: ast.Call, safe_options: set[str]) -> list[str]:
    called = ast.unparse(node.func)
    name = called.rpartition(".")[2]
    given = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    if name in FORBIDDEN_CALLS and not (name == "eval" and called != name):  # model.eval() is something else
        return [f"calls {called}"]
    if called == "torch.load" and not _is(given.get("weights_only"), True):
        return ["torch.load without weights_only=True"]
    if "allow_pickle" in given and not _is(given["allow_pickle"], False):
        return ["allow_pickle"]
    if called == "yaml.load":
        return ["yaml.load instead of safe_load"]
    if "shell" in given and not _is(given["shell"], False):
        return ["a shell command"]
    if "trust_remote_code" in given and not _is_off_or_handed_on(given["trust_remote_code"]):
        return ["trust_remote_code"]
    if name == "from_pretrained" and "trust_remote_code" not in given:
        spread = {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None}
        return [] if spread & safe_options else ["from_pretrained without trust_remote_code=False"]
    return []


def _switches_code_off(options: ast.Dict) -> bool:
    return any(
        _is(key, "trust_remote_code") and _is_off_or_handed_on(value)
        for key, value in zip(options.keys, options.values, strict=True)
    )


def _is_off_or_handed_on(value: ast.AST) -> bool:
    """False, or what a function or a job was given: in the end the study's key, which is off by default."""
    handed_on = ("trust_remote_code", "params.trust_remote_code", "loading['trust_remote_code']")
    return _is(value, False) or ast.unparse(value) in handed_on


def _default_of_parameters(node: ast.FunctionDef) -> list[str]:
    arguments = node.args.posonlyargs + node.args.args
    defaults = zip(reversed(arguments), reversed(node.args.defaults), strict=False)
    on = any(argument.arg == "trust_remote_code" and not _is(default, False) for argument, default in defaults)
    return ["trust_remote_code on by default"] if on else []


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_source_has_a_danger(path: Path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_every_script_that_loads_a_model_asks_the_study_whether_its_code_may_run(path: Path):
    loaders = ("open_point", "load_model", "load_encoder", "load_tokenizer")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in loaders:
            call = ast.unparse(node)
            assert "trust_remote_code" in call or "**params.loading" in call, call


def test_what_says_how_a_model_is_opened_says_whether_its_code_may_run():
    section = (ROOT / "rules/common.smk").read_text(encoding="utf-8").split("def loading_of")[1].split("def ")[0]
    assert '"trust_remote_code"' in section


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from pickle import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pd.read_pickle(f)",
        "yaml.load(f, Loader=yaml.Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(folder)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "options = {'trust_remote_code': True}\nAutoModel.from_pretrained(folder, **options)",
        "def load(folder, trust_remote_code=True):\n    pass",
        "trust_remote_code = True\nAutoModel.from_pretrained(folder, trust_remote_code=trust_remote_code)",
        "import tarfile\ntarfile.open(f).extractall()",
        "shutil.unpack_archive(f)",
    ],
)
def test_the_test_sees_each_danger(source: str):
    assert dangers(source) != []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f, weights_only=True)",
        "model.eval()",
        "def load(f, trust_remote_code=False):\n    AutoModel.from_pretrained(f, trust_remote_code=trust_remote_code)",
        "options = {'trust_remote_code': False}\nAutoModel.from_pretrained(folder, **options)",
        "import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass",
    ],
)
def test_what_is_safe_passes(source: str):
    assert dangers(source) == []
