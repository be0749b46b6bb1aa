"""What must agree across files: pins, rules and scripts, rooms and what they may import."""

import re
import tomllib

import yaml

from copies import ROOT
from forebear.artifacts.code_digest import engine_digest
from forebear.data.corpora.facts import build_facts, build_written_facts
from forebear.estimators import ESTIMATORS


def test_the_conda_file_has_the_pins_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "envs/forebear.yaml").read_text())["dependencies"]
    assert next(entry for entry in conda if isinstance(entry, dict))["pip"] == project["dependencies"]
    assert f"python {project['requires-python']}" in conda


def test_the_workflow_asks_for_the_snakemake_of_pyproject():
    """Older ones refuse the workflow, as its rules in the cache have several outputs."""
    (asked,) = re.findall(r'^min_version\("(.+)"\)$', (ROOT / "Snakefile").read_text(), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = (pin for pin in project["dependencies"] if pin.startswith("snakemake>"))
    assert pin.startswith(f"snakemake>={asked},")


def test_every_rule_has_its_script_and_every_script_its_rule():
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    used = set(re.findall(r"\.\./scripts/(\w+)\.py", rules))
    assert used == {path.stem for path in (ROOT / "scripts").glob("*.py")}
    named = set(re.findall(r"^ *rule (\w+):", rules, re.M)) | set(
        re.findall(r'"(\w+)_\{study\}_\{attributed\}_at', rules)
    )
    assert used <= named


def test_every_entry_of_every_profile_has_a_comment():
    for path in (ROOT / "profiles").glob("*/config.yaml"):
        lines = path.read_text().splitlines()
        sections = [yaml.compose(path.read_text())]
        while sections:
            for key, value in sections.pop().value:
                line = key.start_mark.line
                assert "#" in lines[line] or lines[line - 1].lstrip().startswith("#"), f"{path}: {key.value}"
                sections += [value] if isinstance(value, yaml.MappingNode) else []


def test_every_estimator_is_on_the_page():
    page = (ROOT / "docs/estimators.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([a-z0-9-]+)`", page.split("Where the head")[0])) == set(ESTIMATORS)


def test_a_digest_sees_code_behind_imports_and_data_but_no_comments(tmp_path, monkeypatch):
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "room").mkdir()
    (engine / "near.py").write_text("from forebear.room import far\n")
    (engine / "room/far.py").write_text('"""Doc."""\nx = 1\n')
    (engine / "other.py").write_text("y = 1\n")
    script = tmp_path / "script.py"
    script.write_text("from forebear.near import x\n")

    def digest() -> str:
        from forebear.artifacts import code_digest as digests

        monkeypatch.setattr(digests, "ENGINE", engine)
        digests._code.cache_clear()
        digests._imported_modules.cache_clear()
        return engine_digest(script)

    first = digest()
    assert engine_digest(script) == first  # asked for again in the same process
    (engine / "other.py").write_text("y = 2\n")
    (engine / "room/far.py").write_text('"""Other words."""\n# a comment\nx = 1\n')
    assert digest() == first
    (engine / "room/far.py").write_text("x = 2\n")
    second = digest()
    assert second != first
    (engine / "room/far.py").write_text('x = open("facts.csv")\n')
    digests = [digest()]
    for content in ("Cuba", "Peru"):
        (engine / "room/facts.csv").write_text(content)
        digests.append(digest())
    script.write_text("from forebear.near import x\nx += 1\n")
    digests.append(digest())
    assert len({second, *digests}) == 5


def test_queries_ask_about_countries_that_fine_tuning_never_mentions():
    corpus = build_facts()
    asked = {query["country"] for query in corpus["queries"]}
    assert len(asked) == 40
    assert not asked & {pair["country"] for pair in corpus["finetuning"]}
    by_id = {document["id"]: document for document in corpus["pretraining"]}
    for query in corpus["queries"]:
        assert len(query["relevant"]) >= 3
        for name in query["relevant"]:
            assert query["country"] in by_id[name]["text"]


def test_written_facts_are_the_same_records_without_spaces_before_punctuation():
    spaced, written = build_facts(20, 5), build_written_facts(20, 5)
    for name, records in spaced.items():
        for before, after in zip(records, written[name], strict=True):
            texts = [key for key in ("text", "prompt", "completion") if key in before]
            assert {k: v for k, v in before.items() if k not in texts} == {
                k: v for k, v in after.items() if k not in texts
            }
            assert all(before[key].replace(" ", "") == after[key].replace(" ", "") for key in texts)
            assert not any(mark in after[key] for key in texts for mark in (" .", " :", " ?", " ,", "  "))
            assert after.get("completion", " ").startswith(" ")
