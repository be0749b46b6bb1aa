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
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import cycle, product
from pathlib import Path

import pytest
import yaml

from copies import ROOT, copy_workflow, snakemake
from disks import small_disk
from forebear.errors import ForebearError
from forebear.runtime.receipts import joined_makings, receipt_path, write_receipts
from forebear.runtime.versions import minor_versions
from forebear.workflow.recipes import Contents, recipe_digest
from plans import Made, made_files, rules_in

FIGURE = "results/figures/spearman.png"

STAND_IN = """
from forebear.runtime.job import start

start(snakemake)

import hashlib
import json
import os
import signal
import time
from contextlib import suppress
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
        with open("results/filler", "wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
    if how == "held" and k == 0:
        Path("held").touch()
        while Path("held").exists():
            time.sleep(0.1)
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
def folder(tmp_path_factory) -> Iterator[Path]:
    """A study that was run to its end, with the stand-ins; results/ is a small disk where this user may mount one."""
    folder = copy_workflow(tmp_path_factory.mktemp("study"), config(0))
    for script in (folder / "scripts").glob("*.py"):
        script.write_text(STAND_IN.replace("__NAME__", script.stem))
    (folder / "results").mkdir()
    with small_disk(folder / "results", 8):
        run = snakemake(folder)
        assert run.returncode == 0, run.stdout
        yield folder


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
def files(folder, tmp_path_factory) -> dict[str, Made]:
    """Path → how it is made, of the whole study."""
    copy = copy_workflow(tmp_path_factory.mktemp("graph") / "study", config(0))
    return made_files(copy, list(made(folder)))


@pytest.fixture(scope="module")
def independent(files) -> list[list[str]]:
    """The scripts of the study in groups, in none of which one follows from another."""

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


def test_an_edit_is_not_forgotten_where_a_job_fails(folder, twin, files, independent):
    """Edits reach the failing rules and what follows from them, and nothing before them."""
    scripts = {file.rule: file.script for file in files.values()}
    hows = ("killed", "exception", "disk" if (folder / "results").is_mount() else "exception")
    for group in independent:
        for study, script in product((folder, twin), group):
            with (study / f"scripts/{script}.py").open("a") as code:
                code.write("\nEDITED = True\n")
        failing = dict(zip(group, cycle(hows), strict=False))
        run = snakemake(folder, "--keep-going", FAILING=json.dumps(failing))
        (folder / "results/filler").unlink(missing_ok=True)
        assert run.returncode == 1, run.stdout
        ended = {scripts[rule] for rule in re.findall(r"^Error in rule (\w+)", run.stdout, re.M)}
        assert ended == set(group), run.stdout
        for study in (folder, twin):
            run = snakemake(study)
            assert run.returncode == 0, run.stdout
            assert "Nothing to be done" not in run.stdout
        assert made(folder) == made(twin), group


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["with_its_jobs", "alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_edit_is_not_forgotten_where_snakemake_is_ended(folder, undisturbed, number, send):
    """As a terminal does, to Snakemake with its jobs, or as `kill` does, to Snakemake alone; the same command goes on."""
    seed = other_seed(folder)
    held = folder / "held"
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "scripts"), "FAILING": json.dumps({"fit_covariances": "held"})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        while not held.exists():
            assert process.poll() is None
            time.sleep(0.1)
        send(process.pid, number)
        if send == os.kill and number != signal.SIGKILL:
            time.sleep(1)  # Snakemake waits for its job
            assert process.poll() is None
            held.unlink()
        process.wait()
        if number == signal.SIGKILL:
            assert snakemake(folder, "--unlock").returncode == 0
        run = snakemake(folder)
        assert run.returncode == 0, run.stdout
        assert made(folder) == undisturbed[seed]
    finally:
        held.unlink(missing_ok=True)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_an_edit_is_noticed_without_snakemakes_records(folder, undisturbed):
    shutil.rmtree(folder / ".snakemake")
    assert "Nothing to be done" in snakemake(folder).stdout
    seed = other_seed(folder)
    shutil.rmtree(folder / ".snakemake")
    assert "train_stage" in rules_in(snakemake(folder, "--dry-run").stdout)
    back = other_seed(folder)  # times of files are given back with their recipe
    assert "Nothing to be done" in snakemake(folder).stdout
    assert made(folder) == undisturbed[back]
    assert other_seed(folder) == seed
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    assert made(folder) == undisturbed[seed]


CACHED = "results/tiny/factors/pretraining/eigenvalues.h5"


def test_an_edit_is_noticed_of_what_snakemakes_cache_gave_back(folder, tmp_path):
    """Without Snakemake's records, in a clone for which another one has filled the cache.

    The edit reaches cached rules only, not the data before them.
    """
    clones, cache = [tmp_path / "first", tmp_path / "second"], tmp_path / "cache"
    cache.mkdir()
    environment = {"SNAKEMAKE_OUTPUT_CACHE": str(cache)}

    def run(clone: Path, *arguments: str) -> str:
        shutil.rmtree(clone / ".snakemake", ignore_errors=True)
        ended = snakemake(clone, CACHED, *arguments, **environment)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout

    def set_label_samples(clone: Path, samples: int) -> None:
        described = config(0)
        described["studies"]["tiny"]["label_samples"] = samples
        (clone / "config.yaml").write_text(yaml.safe_dump(described))

    contents = {}
    for clone in clones:
        shutil.copytree(folder, clone, ignore=shutil.ignore_patterns("results", ".snakemake"))
        for samples in (1, 2):
            set_label_samples(clone, samples)
            run(clone, "--cache")
            assert contents.setdefault(samples, (clone / CACHED).read_bytes()) == (clone / CACHED).read_bytes()
        assert contents[1] != contents[2]
        assert (clone / CACHED).is_symlink()
    entries = {entry: entry.lstat().st_mtime_ns for entry in cache.iterdir()}
    assert "Nothing to be done" in run(clone)
    set_label_samples(clone, 1)
    factors = {"fit_covariances", "compute_eigenbasis", "fit_eigenvalues", "gather_factors"}
    assert rules_in(run(clone, "--dry-run")) == factors
    set_label_samples(clone, 2)  # times of links are given back with their recipe
    assert "Nothing to be done" in run(clone)
    set_label_samples(clone, 1)
    run(clone, "--cache")
    assert (clone / CACHED).read_bytes() == contents[1]
    assert "Nothing to be done" in run(clone)
    assert {entry: entry.lstat().st_mtime_ns for entry in cache.iterdir()} == entries
    receipt = clone / receipt_path(CACHED, "results")
    receipt.unlink()
    receipt.write_text("")
    assert rules_in(run(clone, "--dry-run")) == {"fit_eigenvalues", "gather_factors"}


def test_scripts_with_another_time_and_the_same_content_run_nothing(folder):
    for file in (folder / "scripts").rglob("*"):
        file.touch()
    for file in [folder / "Snakefile", *(folder / "rules").rglob("*")]:
        file.touch()
    assert "Nothing to be done" in snakemake(folder).stdout


def test_a_recipe_depends_on_all_that_it_is_made_of():
    versions = {"torch": "2.6"}
    recipe = recipe_digest({"damping": 0.1}, ["a", "b"], versions)
    assert recipe == recipe_digest({"damping": 0.1}, ["a", "b"], versions)
    assert recipe != recipe_digest({"damping": 0.2}, ["a", "b"], versions)
    assert recipe != recipe_digest({"damping": 0.1}, ["b", "a"], versions)
    assert recipe != recipe_digest({"damping": 0.1}, ["a", "b"], {"torch": "2.7"})


def test_a_bug_fix_of_a_library_is_no_other_version(monkeypatch):
    found = []
    for full in ("9.9.1", "9.9.2", "9.10.1"):
        monkeypatch.setattr("forebear.runtime.versions.version", lambda name, full=full: full)
        found.append(minor_versions())
    assert found[0] == found[1] != found[2]
    assert found[0]["torch"] == "9.9"


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


@pytest.mark.parametrize("results", ["results", "attribution/results"])
def test_files_of_two_makings_are_refused_together(tmp_path, monkeypatch, results):
    monkeypatch.chdir(tmp_path)
    for name in ("model.json", "scores.h5", "answers.jsonl"):
        path = tmp_path / results / "s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    model, scores, answers = (f"{results}/s/{name}" for name in ("model.json", "scores.h5", "answers.jsonl"))
    write_receipts([model], results, "first", {})
    write_receipts([scores], results, "s", joined_makings([model], results))
    assert joined_makings([scores, model], results) == {model: "first", scores: "s"}
    write_receipts([model], results, "second", {})
    write_receipts([answers], results, "a", joined_makings([model], results))
    with pytest.raises(
        ForebearError, match=r"answers\.jsonl and .*scores\.h5 were made from different makings of .*model"
    ):
        joined_makings([scores, answers], results)
    assert json.loads(receipt_path(answers, results).read_text())["versions"]["torch"]


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
    assert {"prepare_data", "evaluate"} <= rules_in(snakemake(own_files, "--dry-run").stdout)
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


def test_a_config_file_that_stands_alone_has_the_defaults(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "study", copy_function=shutil.copy2)
    shutil.copy(ROOT / "scripts/write_config.py", copy / "scripts")
    described = config(0)
    assert described["studies"]["tiny"].pop("solvers")["iterations"] == 3
    (copy / "alone.yaml").write_text(yaml.safe_dump(described))
    for arguments, iterations in ([], 3), (["--replace-workflow-config"], 10):
        run = snakemake(copy, "results/tiny/config.yaml", *arguments, "--configfile", "alone.yaml")
        assert run.returncode == 0, run.stdout
        assert ("The study tiny stands in config.yaml and alone.yaml" in run.stdout) == (not arguments)
        shown = yaml.safe_load((copy / "results/tiny/config.yaml").read_text())["studies"]["tiny"]
        assert shown["solvers"]["iterations"] == iterations


def test_a_report_of_some_targets_names_them(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "study", copy_function=shutil.copy2)
    shutil.rmtree(copy / "results")
    assert snakemake(copy, FIGURE).returncode == 0
    refused = snakemake(copy, "--report", "report.html")
    assert refused.returncode == 1
    assert "marked for report but does not exist" in refused.stdout
    for targets in [FIGURE], []:
        assert snakemake(copy, *targets).returncode == 0
        run = snakemake(copy, *targets, "--report", "report.html")
        assert run.returncode == 0, run.stdout
        assert "spearman.png" in (copy / "report.html").read_text()
