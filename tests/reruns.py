"""docs/reruns.md as the workflow has it: `python tests/reruns.py` writes its tables anew, tests compare them."""

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import yaml

from copies import ROOT, copy_workflow
from forebear.artifacts.code_digest import engine_modules
from plans import Made, made_files

PAGE = ROOT / "docs/reruns.md"
ENGINE = ROOT / "scripts/forebear"
TINY = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())["studies"]["tiny"]
# One estimator of every kind: in one pass with others, in a pass of its own, made from another,
# solved for, from retrained models, from hidden states.
ESTIMATORS = ["multistage-ekfac", "multistage-relatif", "multistage-pcg", "singlestage-ekfac", "trak", "embedding"]
LAST = ("spearman.png", "damping.png", "cost_by_size.png", "proponents.md", "pages/proponents.html")
# They follow every edit of the study, of a key, and of a figure.
LEFT_OUT = {"gather_provenance", "write_config", "publish_figure"}
NAMES, KEYS, MODULES, OTHERS = (
    "Names used below",
    "An edit in config.yaml",
    "An edit in the engine",
    "An edit in the engine of other studies",
)
EDITS = {
    "`corpus`, of an embedded one": {**TINY["corpus"], "countries": 9},
    "`model`": {**TINY["model"], "hidden_size": 32},
    "`max_length`": 24,
    "`chat`": {"loss": "last"},
    "`stages[0].training`": {**TINY["stages"][0]["training"], "epochs": 3},
    "`stages[1].training`": {**TINY["stages"][1]["training"], "epochs": 3},
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
    "`sweep`": {"own": [0.1, 1.0]},
    "`trak`": {**TINY["trak"], "members": 3},
    "`solvers`": {**TINY["solvers"], "iterations": 4},
    "`ensemble`": {"members": 2},
    "`top`": 3,
    "`seed`": 1,
    "`training_seed`": 1,
    "`cost`": {"sizes": [{"hidden_size": 8}, {"hidden_size": 12}, {"hidden_size": 20}]},
    "`compression`": {"rank": 2},
    "`shards`": 3,
    "`threads`": 2,
    "`gpus`": 1,
    "`precision`": "bfloat16",
    "`trust_remote_code`": True,
    "`memory`": 2,
}
# A study on files of one's own. Each row is of an edit in a file, and of another one.
FILES = {
    "`corpus.documents`, another file or an edit in it": ("corpus", "documents", "pretraining"),
    "`corpus.queries`, another file or an edit in it": ("corpus", "queries"),
}
LINE = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
# Studies with rules that those above do not have, and what is asked of them.
STUDIES = {
    "bloom": ["evaluation.csv"],
    "dolly": ["evaluation.csv"],
    "validation": ["spearman_cg.png"],
    "compressed and sharded": ["evaluation.csv", "proponents.md"],
    "with an ensemble": ["evaluation.csv"],
}


def edited(study: dict, path: Iterable[str | int], value: object) -> dict:
    """A copy of a study's config with another value of a key."""
    study = json.loads(json.dumps(study))
    *parents, last = path
    place = study
    for part in parents:
        place = place[part]
    place[last] = value
    return study


def key_of(row: str) -> list[str | int]:
    """`stages[1].alpha` → ["stages", 1, "alpha"]."""
    return [int(part) if part.isdigit() else part for part in re.findall(r"\w+", row.split("`")[1])]


def described(name: str) -> dict:
    """The config of one of STUDIES."""
    if name == "compressed and sharded":
        return {**TINY, "estimators": ESTIMATORS, "compression": {"rank": 2}, "shards": 2}
    if name == "with an ensemble":
        return {**TINY, "estimators": ["multistage-ekfac", "multistage-ensemble"]}
    return yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text())["studies"][name]


def own_files(number: int) -> dict:
    """The study on files of its own, whose names end in a number."""
    documents = {name: f"{name}{number}.jsonl" for name in ("pretraining", "finetuning")}
    return {**TINY, "estimators": ESTIMATORS, "corpus": {"documents": documents, "queries": f"queries{number}.jsonl"}}


def write_files(folder: Path, study: dict) -> None:
    for name in (*study["corpus"]["documents"].values(), study["corpus"]["queries"]):
        (folder / name).write_text(LINE)


@cache
def _before_and_after() -> dict[str, tuple[dict[str, Made], dict[str, Made]]]:
    """Row of the page, or name of STUDIES → the study's files without and with the edit.

    Each edit has a study of its own, so that the workflow is read twice for all of them.
    """
    plain = {**TINY, "estimators": ESTIMATORS}
    studies = {row: (plain, edited(plain, key_of(row), value)) for row, value in EDITS.items()}
    for number, (row, path) in enumerate(FILES.items()):
        studies[row] = (own_files(number),) * 2
        other = own_files(10 + number)
        studies[f"other {row}"] = (other, edited(other, path, "other.jsonl"))
    studies |= {name: (described(name),) * 2 for name in STUDIES}
    names = {f"s{number}": row for number, row in enumerate(studies)}
    targets = [f"results/{name}/{file}" for name, row in names.items() for file in STUDIES.get(row, LAST)]

    def read(folder: Path, which: int) -> dict[str, dict[str, Made]]:
        config = {"study": "s0", "studies": {name: studies[row][which] for name, row in names.items()}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        found = made_files(folder, targets)
        return {row: {p: m for p, m in found.items() if p.startswith(f"results/{n}/")} for n, row in names.items()}

    with tempfile.TemporaryDirectory() as folder:
        copy = copy_workflow(Path(folder) / "study", {})
        for row in [*FILES, *(f"other {row}" for row in FILES)]:
            write_files(copy, studies[row][0])
        (copy / "other.jsonl").write_text(LINE * 2)
        before = read(copy, 0)
        for row, path in FILES.items():
            place = studies[row][0]
            for part in path:
                place = place[part]
            (copy / place).write_text(LINE * 3)
        after = read(copy, 1)
    return {row: (before[row], after[row]) for row in studies}


def files_of(study: str) -> dict[str, Made]:
    """The files of one of STUDIES, or of the study with one of EDITS."""
    return _before_and_after()[study][1]


def plain_files() -> dict[str, Made]:
    """The files of the study that keys and modules are edited of."""
    return _before_and_after()[next(iter(EDITS))][0]


def rerun_by_key(row: str) -> dict[str, bool]:
    """Rule of which files are made again → whether all of its files are."""
    before, after = _before_and_after()[row]
    again = {path for path, made in after.items() if path not in before or before[path].recipe != made.recipe}
    of_rule: dict[str, list[bool]] = {}
    for path, made in after.items():
        of_rule.setdefault(made.rule, []).append(path in again)
    return {rule: all(files) for rule, files in of_rule.items() if any(files) and rule not in LEFT_OUT}


def rerun_by_module(module: str, files: Mapping[str, Made]) -> set[str]:
    """The rules whose scripts use a module, and all that follow from them."""

    @cache
    def made_again(path: str) -> bool:
        made = files.get(path)
        return made is not None and (module in _modules_of(made.script) or any(map(made_again, made.inputs)))

    return {made.rule for path, made in files.items() if made_again(path)} - LEFT_OUT


@cache
def _modules_of(script: str) -> frozenset[str]:
    return frozenset(map(dotted, engine_modules(ROOT / f"scripts/{script}.py")))


def dotted(path: Path) -> str:
    """scores/pairwise.py → scores.pairwise."""
    return ".".join(path.with_suffix("").parts)


def modules() -> list[str]:
    """All modules of the engine by their names on the page."""
    paths = (path.relative_to(ENGINE) for path in sorted(ENGINE.rglob("*.py")))
    return [dotted(path) for path in paths if path.stem not in ("__init__", "__main__")]


# The page


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of the page, without its first two lines."""
    rows = [line.strip("|").split("|") for line in _section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def _section(heading: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]


def rules(cell: str) -> set[str]:
    """The rules that a cell stands for."""
    if cell == "nothing":
        return set()
    parts, names = [part.strip() for part in cell.split(",")], dict(table(NAMES))
    return set().union(*({part.strip("`")} if part.startswith("`") else rules(names[part]) for part in parts))


def cell(found: set[str], files: Mapping[str, Made], every: set[str] | None = None) -> str:
    """A short cell that stands for these rules: names of the page, and before them what no name has.

    `every` are the rules of a study that has not all that the names stand for.
    """
    names = {name: rules(name) if every is None else rules(name) & every for name, _ in table(NAMES)}
    parts, left = [], set(found)
    for name, covered in sorted(names.items(), key=lambda item: -len(item[1])):
        if covered <= found and len(covered & left) > 1:
            parts.append(name)
            left -= covered
    return ", ".join([f"`{rule}`" for rule in _in_order(files) if rule in left] + parts) or "nothing"


def _in_order(files: Mapping[str, Made]) -> list[str]:
    """The rules of a study, each after those that it follows."""

    @cache
    def depth(path: str) -> int:
        return 1 + max(map(depth, files[path].inputs), default=0) if path in files else 0

    depths: dict[str, int] = {}
    for path, made in files.items():
        depths[made.rule] = max(depth(path), depths.get(made.rule, 0))
    return sorted(depths, key=lambda rule: (depths[rule], rule))


def key_rows() -> list[list[str]]:
    """The rows of the table of keys; what is kept stands on the page alone."""
    kept = {row: text for row, _, text in table(KEYS)}
    assert set(kept) == {*EDITS, *FILES}, "each row needs its edit in tests/reruns.py, and each edit a row"
    return [[row, cell(set(rerun_by_key(row)), files_of(row)), kept[row]] for row in kept]


def module_rows() -> list[list[str]]:
    """The rows of the table of modules: one for those of a room from which the same follows."""
    others = {name for _, names in _of_other_studies() for name in names}
    found = {module: rerun_by_module(module, plain_files()) for module in modules() if module not in others}
    used = _together((_room(name), cell(again, plain_files()), name) for name, again in found.items() if again)
    unused = _together(("", "nothing", name) for name, again in found.items() if not again)
    return [[_named(names), again] for (_, again), names in [*used.items(), *unused.items()]]


def other_rows() -> list[list[str]]:
    """The rows of modules that the study does not use and another does."""
    return [[_named(names), study, again] for (study, again), names in _of_other_studies()]


def _of_other_studies() -> Iterable[tuple[tuple[str, str], list[str]]]:
    rows = []
    for module in modules():
        if not rerun_by_module(module, plain_files()):
            by_study = {study: files_of(study) for study in STUDIES}
            found = {study: rerun_by_module(module, files) for study, files in by_study.items()}
            study = next((study for study, again in found.items() if again), None)
            if study:
                every = {made.rule for made in by_study[study].values()}
                rows.append((study, cell(found[study], by_study[study], every), module))
    return _together(rows).items()


def _together(rows: Iterable[tuple[str, str, str]]) -> dict[tuple[str, str], list[str]]:
    """Modules of rows that have the same two cells."""
    together: dict[tuple[str, str], list[str]] = {}
    for first, second, module in rows:
        together.setdefault((first, second), []).append(module)
    return together


def _room(module: str) -> str:
    return module.rpartition(".")[0]


def _named(together: list[str]) -> str:
    """`data.corpora.*` where they are all modules of a room."""
    rooms = _together((_room(module), "", module) for module in together)
    whole = _together((_room(module), "", module) for module in modules())
    parts = []
    for (room, _), names in rooms.items():
        parts += [f"{room}.*"] if room and len(names) > 1 and names == whole[room, ""] else names
    return ", ".join(f"`{part}`" for part in parts)


def lines(rows: Iterable[list[str]]) -> str:
    """The lines of a table."""
    return "".join("| " + " | ".join(row).strip() + " |\n" for row in rows)


def written(page: str) -> str:
    """The page with the tables as they have to be."""
    for heading, rows in ((KEYS, key_rows()), (MODULES, module_rows()), (OTHERS, other_rows())):
        before, after = page.split(f"## {heading}\n")
        head, line, rest = after.partition("| --- |\n")
        _, end, following = rest.partition("|\n\n")
        page = f"{before}## {heading}\n{head}{line}{lines(rows)}\n{following}"
        assert end
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
