"""A digest of the engine code that a script uses, for Snakemake's `params`.

Snakemake reruns a job whose script changed, but not one whose imported modules changed.
The digest covers the syntax trees of the script and of all modules that it imports, directly
or not, without docstrings, and the data files beside them that these modules name; so an edit in one
module reruns what uses it, and a comment nothing. The script counts because the digest also
names what jobs keep for later runs: retrainings, and rows of an interrupted pass.
The rooms that only talk to the user or the system are left out: they cannot change a result.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

ENGINE = Path(__file__).parents[1]
SILENT = frozenset({"errors", "runtime"})  # rooms that cannot change a result


def engine_digest(script: str | Path) -> str:
    """Digest of a script and of the engine's modules that it imports, directly or through others."""
    content = _code(Path(script))
    content += "".join(f"{module}:{_code(ENGINE / module)}" for module in sorted(engine_modules(script)))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def engine_modules(script: str | Path) -> set[Path]:
    """The engine's modules whose code the digest of a script covers, relative to ENGINE."""
    modules, waiting = set[Path](), set(_imported_modules(Path(script)))
    while waiting:
        module = waiting.pop()
        if module not in modules:
            modules.add(module)
            waiting |= _imported_modules(ENGINE / module)
    return modules


@cache
def _imported_modules(path: Path) -> frozenset[Path]:
    """The files of the engine that a file imports, relative to ENGINE, without the silent rooms."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "forebear":
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("forebear.")}
    files = {Path(*name.split(".")[1:]).with_suffix(".py") for name in names if "." in name}
    return frozenset(
        file for file in files if file.parts[0].removesuffix(".py") not in SILENT and (ENGINE / file).is_file()
    )


@cache
def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    code = ast.dump(tree)
    beside = [file for file in sorted(path.parent.iterdir()) if file.is_file() and file.suffix != ".py"]
    named = [file for file in beside if file.name in code]
    return code + "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in named)
