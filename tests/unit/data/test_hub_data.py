"""Data sets are streamed from a server that speaks the hub's protocol."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from copies import ROOT, copy_workflow, snakemake
from loopback_hub import Hub, Repository, serving

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.slow  # every fetch is a process of its own, which reads the environment

FETCH = """
import json, sys
from forebear.errors import ForebearError
from forebear.data.records import read_records
from forebear.data.sources import Source
for source in json.loads(sys.argv[1]):
    try:
        print("FETCHED" + json.dumps(read_records(Source(**source))))
    except ForebearError as error:
        print("FETCHED" + json.dumps(str(error)))
"""
CARD = """---
configs:
- {config_name: a, data_files: a.jsonl}
- {config_name: b, data_files: b.jsonl}
---
"""


def table(count: int, first: int = 0):
    features = datasets.Features(
        content=datasets.Value("string"),
        label=datasets.ClassLabel(names=["early", "late"]),
        embedding=datasets.List(datasets.Value("float32")),
    )
    places = range(first, first + count)
    columns = {
        "content": [f"document {k}" for k in places],
        "label": [int(k > 5) for k in places],
        "embedding": [[0.5, k] for k in places],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """Data sets as people publish them, each in its folder."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("parquet/data", "lines", "subsets", "table", "empty"):
        (folder / name).mkdir(parents=True)
    table(6).to_parquet(folder / "parquet/data/train-00000-of-00002.parquet")
    table(4, 6).to_parquet(folder / "parquet/data/train-00001-of-00002.parquet")
    table(2, 10).to_parquet(folder / "parquet/data/test-00000-of-00001.parquet")
    lines = "".join(json.dumps({"text": f"line {k}", "id": k}) + "\n" for k in range(5000))
    (folder / "lines/train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "subsets/README.md").write_text(CARD)
    for name in "ab":
        (folder / f"subsets/{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    (folder / "table/train.csv").write_text("prompt,completion\nnothing?,None\n7?,007\n")
    (folder / "empty/notes.bin").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def hub(published):
    names = ("parquet", "lines", "subsets", "table", "empty")
    repositories = {f"datasets/org/{name}": Repository(published / name) for name in names}
    repositories["datasets/org/gated"] = Repository(published / "lines", token="hf_secret")
    with serving(Hub(repositories)) as served:
        yield served


@pytest.fixture
def fetch(hub, tmp_path):
    """(sources, environment) → records of each, or the sentence that is said instead, from a fresh process."""

    def run(*sources: dict, **environment: str) -> list:
        hub.asked.clear()
        complete = [{"revision": "v1", **source} for source in sources]
        result = subprocess.run(
            [sys.executable, "-c", FETCH, json.dumps(complete)],
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, **environment},
            cwd=tmp_path,
            text=True,
            capture_output=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return [json.loads(line[7:]) for line in result.stdout.splitlines() if line.startswith("FETCHED")]

    return run


def test_every_format_on_the_hub_gives_its_records(fetch):
    train, test, subset, lines, cells = fetch(
        {"hub": "org/parquet", "split": "train", "columns": {"text": "content"}},
        {"hub": "org/parquet", "split": "test", "columns": {"text": "content", "group": "label"}, "limit": 1},
        {"hub": "org/subsets", "name": "b"},
        {"hub": "org/lines", "limit": 2},
        {"hub": "org/table"},
    )
    expected = [{"text": f"document {k}", "label": "late" if k > 5 else "early"} for k in range(10)]
    assert train == [{**record, "id": str(k)} for k, record in enumerate(expected, start=1)]
    assert test == [{"text": "document 10", "label": "late", "group": "late", "id": "1"}]
    assert subset == [{"text": "b", "id": "1"}]
    assert lines == [{"text": "line 0", "id": "0"}, {"text": "line 1", "id": "1"}]
    assert cells == [
        {"prompt": "nothing?", "completion": "None", "id": "1"},
        {"prompt": "7?", "completion": "007", "id": "2"},
    ]


def test_a_limit_fetches_no_further_files(fetch, hub):
    fetch({"hub": "org/parquet", "split": "train", "columns": {"text": "content"}, "limit": 3})
    files = {path.rpartition("/")[2] for _, path, _ in hub.asked if "resolve" in path}
    assert "train-00000-of-00002.parquet" in files
    assert "train-00001-of-00002.parquet" not in files


def test_a_folder_of_the_same_name_is_not_taken_for_the_data_set(fetch, tmp_path):
    (tmp_path / "org/table").mkdir(parents=True)
    (tmp_path / "org/table/train.csv").write_text("prompt,completion\nlocal,local\n")
    assert fetch({"hub": "org/table"})[0][0]["prompt"] == "nothing?"


def test_another_revision_in_the_cache_is_not_taken_instead(fetch):
    assert len(fetch({"hub": "org/lines", "limit": 2})[0]) == 2
    assert fetch({"hub": "org/lines", "revision": "v2", "limit": 2}) == [
        "org/lines: the data set has no revision 'v2'; correct `revision`."
    ]


def test_what_the_hub_refuses_is_said_in_a_sentence(fetch):
    said = fetch(
        {"hub": "org/missing"},
        {"hub": "org/gated"},
        {"hub": "org/parquet"},
        {"hub": "org/parquet", "split": "dev"},
        {"hub": "org/parquet", "split": "test", "columns": {"text": "contents"}},
        {"hub": "org/subsets"},
        {"hub": "org/subsets", "name": "c"},
        {"hub": "org/empty"},
        {"hub": "org/parquet", "split": "test"},
        HF_TOKEN="",
    )
    for sentence, words in zip(
        said,
        [
            "org/missing: the hub has no such data set, or it is private",
            "org/gated: the data set is gated; accept its licence",
            "org/parquet at v1: has several splits; set `split` to one of train, test.",
            "org/parquet at v1: has no split 'dev'; set `split` to one of train, test.",
            "org/parquet at v1: has no column 'contents'; there are 'content', 'label', 'embedding'.",
            "org/subsets at v1: has several subsets; set `name` to one of a, b.",
            "org/subsets at v1: has no subset 'c'; `name` must be one of a, b.",
            "org/empty at v1: the data set cannot be read",
            "org/parquet at v1, split test, row 1: needs a non-empty string `text`",
        ],
        strict=True,
    ):
        assert sentence.startswith(words)


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:1"}])
def test_without_a_network_the_remedy_is_named(fetch, environment: dict):
    (sentence,) = fetch({"hub": "org/lines"}, **environment)
    assert "run again with a network, or give a file of it as `path`" in sentence


def test_a_study_reads_the_hub_tables_and_shards_and_notices_an_edit(hub, tmp_path):
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    data = {"hub": "org/parquet", "revision": "v1", "split": "train", "text": "content", "limit": 8}
    config["studies"]["tiny"]["corpus"] = {
        "documents": {"pretraining": data, "finetuning": "my/*.csv.gz"},
        "queries": {"path": "my/queries.parquet", "prompt": "question", "completion": "answer"},
    }
    folder = copy_workflow(tmp_path / "clone", config)
    files = [f"results/tiny/data/{name}.jsonl" for name in ("pretraining", "finetuning", "queries")]
    dry = snakemake(folder, *files, "--dry-run", HF_ENDPOINT="http://127.0.0.1:1")
    assert dry.returncode == 0, dry.stdout
    assert "tiny: fetch pretraining from the hub" in dry.stdout
    missing = snakemake(folder, files[1])
    assert "error: my/*.csv.gz: no file has such a name; check `corpus` in the config." in missing.stdout
    (folder / "my").mkdir()
    datasets.Dataset.from_list([{"question": "a ?", "answer": "b"}]).to_parquet(folder / "my/queries.parquet")
    for name in "ab":
        (folder / f"my/{name}.csv.gz").write_bytes(gzip.compress(f"prompt,completion\n{name} ?,yes\n".encode()))
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    run = snakemake(folder, *files, **environment)
    assert run.returncode == 0, run.stdout
    fetched, pairs, queries = ([json.loads(line) for line in (folder / f).read_text().splitlines()] for f in files)
    assert [record["text"] for record in fetched] == [f"document {k}" for k in range(8)]
    assert [record["prompt"] for record in pairs] == ["a ?", "b ?"]
    assert queries == [{"prompt": "a ?", "completion": "b", "id": "1"}]
    (folder / "my/b.csv.gz").write_bytes(gzip.compress(b"prompt,completion\nchanged ?,yes\n"))
    environment["HF_ENDPOINT"] = "http://127.0.0.1:1"  # what was fetched is not fetched again
    again = snakemake(folder, *files, **environment)
    assert again.returncode == 0, again.stdout
    assert "tiny: prepare finetuning" in again.stdout
    assert "tiny: prepare queries" not in again.stdout
    assert "changed ?" in (folder / files[1]).read_text()
