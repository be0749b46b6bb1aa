"""What results/ shows is what config, code and data say, whatever happened before.

Snakemake, the rules and the config are real; the scripts are stand-ins that write digests of their
inputs and params, so that a run takes seconds and every file can be compared byte by byte.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import cycle, product
from pathlib import Path

import pytest
import yaml

from copies import ROOT, copy_workflow, snakemake
from forebear.artifacts.versions import library_versions
from forebear.errors import ForebearError
from forebear.runtime.receipts import joined_makings, receipt_path, write_receipts
from forebear.workflow.recipes import Contents, recipe_digest
from plans import made_files, script_of

STAND_IN = """
from forebear.runtime.job import start

start(snakemake)

import hashlib
import json
import os
import signal
import time
from pathlib import Path

how = json.loads(os.environ.get("FAILING", "{}")).get("__NAME__")
params = {key: value for key, value in snakemake.params.items() if key != "recipe"}
made = hashlib.sha256(json.dumps(params, sort_keys=True, default=str).encode())
for file in snakemake.input:
    made.update(Path(file).read_bytes())
for k, output in enumerate(snakemake.output):
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    if how == "killed":
        Path(output).write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exception":
        raise RuntimeError("on purpose")
    if how == "disk":
        raise OSError(28, "No space left on device", output)
    if how == "held":
        Path("held").touch()
        time.sleep(60)
    Path(output).write_text(f"{k} {made.hexdigest()}")
"""


def config(seed: int) -> dict:
    described = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    study = described["studies"]["tiny"]
    study["estimators"] = [
        "multistage-ekfac",
        "multistage-relatif",
        "multistage-pcg",
        "multistage-ensemble",
        "trak",
        "bm25",
    ]
    study["seed"] = seed
    return described


def set_seed(folder: Path, seed: int) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config(seed)))


def made(folder: Path) -> dict[str, bytes]:
    """Path → content, of everything that rules make."""
    files = [p for p in (folder / "results").rglob("*") if p.is_file() and p.suffix != ".log"]
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in files
        if not p.name.startswith(".") and ".recipes" not in p.parts
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study that was run to its end, with the stand-ins."""
    folder = copy_workflow(tmp_path_factory.mktemp("study"), config(0))
    for script in (folder / "scripts").glob("*.py"):
        script.write_text(STAND_IN.replace("__NAME__", script.stem))
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory) -> dict[int, dict[str, bytes]]:
    """seed → everything that a run from scratch makes."""
    found = {0: made(folder)}
    other = tmp_path_factory.mktemp("other") / "study"
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns("results", ".snakemake"))
    set_seed(other, 1)
    run = snakemake(other)
    assert run.returncode == 0, run.stdout
    found[1] = made(other)
    assert found[0].keys() == found[1].keys()
    assert not [name for name in found[0] if found[0][name] == found[1][name]]
    return found


def other_seed(folder: Path) -> int:
    seed = 1 - yaml.safe_load((folder / "config.yaml").read_text())["studies"]["tiny"]["seed"]
    set_seed(folder, seed)
    return seed


@pytest.fixture(scope="module")
def twin(folder, tmp_path_factory) -> Path:
    """A copy of the study in which no job fails."""
    return shutil.copytree(folder, tmp_path_factory.mktemp("twin") / "study", copy_function=shutil.copy2)


@pytest.fixture(scope="module")
def independent(folder, tmp_path_factory) -> list[list[str]]:
    """The scripts of the study in groups, in none of which one follows from another."""
    copy = copy_workflow(tmp_path_factory.mktemp("graph") / "study", config(0))
    files = made_files(copy, list(made(folder)))

    @cache
    def above(path: str) -> frozenset[str]:
        inputs = [name for name in files[path].inputs if name in files]
        return frozenset({files[name].script for name in inputs}.union(*map(above, inputs)))

    before = {made.script: set() for made in files.values()}
    for path, made_file in files.items():
        before[made_file.script] |= above(path)
    groups: list[list[str]] = []
    for script in sorted(before, key=lambda name: (len(before[name]), name)):
        free = (g for g in groups if not any(script in before[other] or other in before[script] for other in g))
        group = next(free, None)
        groups.append([script]) if group is None else group.append(script)
    assert len(before) > 28
    return groups


def test_an_edit_is_not_forgotten_where_a_job_fails(folder, twin, independent):
    """Edits reach the failing rules and what follows from them, and nothing before them."""
    for group in independent:
        for study, script in product((folder, twin), group):
            with (study / f"scripts/{script}.py").open("a") as code:
                code.write("\nEDITED = True\n")
        failing = dict(zip(group, cycle(("killed", "exception", "disk")), strict=False))
        run = snakemake(folder, "--keep-going", FAILING=json.dumps(failing))
        assert run.returncode == 1, run.stdout
        ended = {script_of(rule) for rule in re.findall(r"^Error in rule (\w+)", run.stdout, re.M)}
        assert ended == set(group), run.stdout
        for study in (folder, twin):
            run = snakemake(study)
            assert run.returncode == 0, run.stdout
            assert "Nothing to be done" not in run.stdout
        assert made(folder) == made(twin), group


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_edit_is_not_forgotten_where_snakemake_is_ended(folder, undisturbed, number):
    seed = other_seed(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "scripts"), "FAILING": json.dumps({"fit_covariances": "held"})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (folder / "held").exists():
        assert process.poll() is None
        time.sleep(0.1)
    (folder / "held").unlink()
    os.killpg(process.pid, number)
    process.wait()
    if number == signal.SIGKILL:
        assert snakemake(folder, "--unlock").returncode == 0
    run = snakemake(folder, "--rerun-incomplete")
    assert run.returncode == 0, run.stdout
    assert made(folder) == undisturbed[seed]


def test_an_edit_is_noticed_without_snakemakes_records(folder, undisturbed):
    shutil.rmtree(folder / ".snakemake")
    assert "Nothing to be done" in snakemake(folder).stdout
    seed = other_seed(folder)
    shutil.rmtree(folder / ".snakemake")
    planned = snakemake(folder, "--dry-run").stdout
    assert "train_stage" in planned
    back = other_seed(folder)  # times of files are given back with their recipe
    assert "Nothing to be done" in snakemake(folder).stdout
    assert made(folder) == undisturbed[back]
    assert other_seed(folder) == seed
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    assert made(folder) == undisturbed[seed]


def test_scripts_with_another_time_and_the_same_content_run_nothing(folder):
    for file in (folder / "scripts").rglob("*"):
        file.touch()
    for file in [folder / "Snakefile", *(folder / "rules").rglob("*")]:
        file.touch()
    assert "Nothing to be done" in snakemake(folder).stdout


def test_a_recipe_depends_on_all_that_it_is_made_of():
    recipe = recipe_digest({"damping": 0.1}, ["a", "b"], {"torch": "2.9"})
    assert recipe == recipe_digest({"damping": 0.1}, ["a", "b"], {"torch": "2.9"})
    assert recipe != recipe_digest({"damping": 0.2}, ["a", "b"], {"torch": "2.9"})
    assert recipe != recipe_digest({"damping": 0.1}, ["b", "a"], {"torch": "2.9"})
    assert recipe != recipe_digest({"damping": 0.1}, ["a", "b"], {"torch": "2.10"})


def test_versions_of_libraries_count_without_bug_fixes(monkeypatch):
    monkeypatch.setattr("forebear.artifacts.versions.version", lambda name: "9.9.1")
    first = library_versions()
    monkeypatch.setattr("forebear.artifacts.versions.version", lambda name: "9.9.2")
    assert library_versions() == first
    monkeypatch.setattr("forebear.artifacts.versions.version", lambda name: "9.10.1")
    assert library_versions() != first


def test_content_counts_and_not_time(tmp_path):
    """Also where the new content has an older time, the old one's size, or lies deep in a folder."""
    folder = tmp_path / "data/inner"
    folder.mkdir(parents=True)
    file = folder / "a.jsonl"
    file.write_text("one")
    before = [Contents(tmp_path / "memory").digest(path) for path in (file, tmp_path / "data")]
    contents = Contents(tmp_path / "memory")
    assert [contents.digest(path) for path in (file, tmp_path / "data")] == before
    contents.save()
    new = tmp_path / "new"
    new.write_text("two")
    os.utime(new, (1, 1))
    shutil.copy2(new, file)
    again = Contents(tmp_path / "memory")
    assert again.digest(file) == hashlib.sha256(b"two").hexdigest() != before[0]
    assert again.digest(tmp_path / "data") != before[1]


def test_a_file_is_read_once(tmp_path, monkeypatch):
    file = tmp_path / "corpus"
    file.write_text("text")
    contents = Contents(tmp_path / "memory")
    digest = contents.digest(file)
    contents.save()
    monkeypatch.setattr("forebear.workflow.recipes.file_digest", lambda path: pytest.fail("read again"))
    assert Contents(tmp_path / "memory").digest(file) == digest


def test_files_of_two_makings_are_refused_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.json", "scores.h5", "answers.jsonl"):
        path = tmp_path / "results/s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    model, scores, answers = (f"results/s/{name}" for name in ("model.json", "scores.h5", "answers.jsonl"))
    write_receipts([model], "first", {})
    write_receipts([scores], "s", joined_makings([model]))
    assert joined_makings([scores, model]) == {model: "first", scores: "s"}
    write_receipts([model], "second", {})
    write_receipts([answers], "a", joined_makings([model]))
    with pytest.raises(
        ForebearError, match=r"answers\.jsonl and .*scores\.h5 were made from different makings of .*model"
    ):
        joined_makings([scores, answers])
    assert json.loads(receipt_path(answers).read_text())["versions"]["torch"]


def test_the_workflow_runs_its_own_engine(folder, tmp_path):
    """Another clone's engine is installed, and comes first on the path."""
    other = shutil.copytree(ROOT / "scripts/forebear", tmp_path / "installed/forebear")
    (other / "runtime/job.py").write_text("raise SystemExit('the engine of another clone')\n")
    (other / "config/reading.py").write_text("raise SystemExit('the engine of another clone')\n")
    copy = shutil.copytree(folder, tmp_path / "study", copy_function=shutil.copy2)
    run = snakemake(copy, "--forcerun", "evaluate", PYTHONPATH=str(tmp_path / "installed"))
    assert run.returncode == 0, run.stdout


@pytest.fixture(scope="module")
def own_files(tmp_path_factory) -> Path:
    """A study on files of the user's, and a folder of them, that was run to its end."""
    described = config(0)
    documents = {"pretraining": "documents", "finetuning": "pairs.jsonl"}
    described["studies"]["tiny"]["corpus"] = {"documents": documents, "queries": "questions.jsonl"}
    folder = copy_workflow(tmp_path_factory.mktemp("own") / "study", described)
    (folder / "documents/inner").mkdir(parents=True)
    for name in ("documents/inner/one.jsonl", "pairs.jsonl", "questions.jsonl"):
        (folder / name).write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    for script in (folder / "scripts").glob("*.py"):
        script.write_text(STAND_IN.replace("__NAME__", script.stem))
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    return folder


@pytest.mark.parametrize("name", ["questions.jsonl", "documents/inner/one.jsonl"])
def test_other_content_with_an_older_time_is_noticed(own_files, name: str):
    file = own_files / name
    before = file.stat()
    file.write_text(file.read_text().replace("a", "c"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns - 10**12))
    planned = snakemake(own_files, "--dry-run").stdout
    assert "prepare_data" in planned
    assert "evaluate" in planned
    run = snakemake(own_files)
    assert run.returncode == 0, run.stdout
    file.touch()
    assert "Nothing to be done" in snakemake(own_files).stdout


@pytest.mark.parametrize("name", ["questions.jsonl", "documents"])
def test_a_file_that_is_away_for_one_command_costs_nothing(own_files, tmp_path, name: str):
    before = made(own_files)
    shutil.move(own_files / name, tmp_path / "away")
    run = snakemake(own_files)
    assert run.returncode == 1
    assert f"{name}: there is no such file; check `corpus` in the config" in run.stdout
    assert "Traceback" not in run.stdout
    assert snakemake(own_files, "--dry-run").returncode == 0
    shutil.move(tmp_path / "away", own_files / name)
    assert "Nothing to be done" in snakemake(own_files).stdout
    assert made(own_files) == before


def test_the_config_is_shown_as_it_counts(folder, tmp_path):
    """Sections of one study from two files, and defaults."""
    copy = shutil.copytree(folder, tmp_path / "study", copy_function=shutil.copy2)
    shutil.copy(ROOT / "scripts/write_config.py", copy / "scripts")
    (copy / "more.yaml").write_text("studies: {tiny: {top: 3}}\n")
    run = snakemake(copy, "results/tiny/config.yaml", "--configfile", "config.yaml", "more.yaml")
    assert run.returncode == 0, run.stdout
    assert "The study tiny stands in config.yaml and more.yaml" in run.stdout
    shown = yaml.safe_load((copy / "results/tiny/config.yaml").read_text())["studies"]["tiny"]
    assert (shown["top"], shown["max_length"], shown["label_samples"]) == (3, 32, 1)
