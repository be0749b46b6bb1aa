"""A digest of the engine code that a script uses, for Snakemake's `params`.

Snakemake reruns a job whose script changed, but not one whose imported modules changed.
The digest covers the syntax trees of the script and of all rooms that it imports, directly
or not, without docstrings, and the files of data/ that these rooms name; so an edit in one
room reruns what uses it, and a comment nothing. The script counts because the digest also
names what jobs keep for later runs: retrainings, and rows of an interrupted pass.
Rooms that only talk to the user or the system are left out: they cannot change a result.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

ENGINE = Path(__file__).parent
SILENT = frozenset(
    {"devices", "errors", "holders", "hub_errors", "jobs", "progress", "receipts", "redaction", "writing"}
)


def engine_digest(script: str | Path) -> str:
    """Digest of a script and of the rooms of the engine that it imports, directly or through others."""
    script, rooms = Path(script), set[str]()
    waiting = set(_imported_rooms(script))
    while waiting:
        room = waiting.pop()
        if room not in rooms:
            rooms.add(room)
            waiting |= _imported_rooms(ENGINE / f"{room}.py")
    content = _code(script) + "".join(f"{room}:{_code(ENGINE / f'{room}.py')}" for room in sorted(rooms))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@cache
def _imported_rooms(path: Path) -> frozenset[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "forebear":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forebear."):
            rooms.add(node.module.split(".")[1])
    return frozenset(room for room in rooms - SILENT if (ENGINE / f"{room}.py").is_file())


@cache
def _code(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    code = ast.dump(tree)
    named = [file for file in sorted(path.parent.glob("data/*")) if file.name in code]
    return code + "".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in named)
