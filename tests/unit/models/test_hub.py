"""Published checkpoints are fetched from a server that speaks the hub's protocol."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from copies import copy_workflow, snakemake
from forebear.models.checkpoints import link_checkpoint, load_model
from loopback_hub import Hub, Repository, serving
from published import tiny_checkpoint

pytestmark = pytest.mark.slow  # every fetch is a process of its own, which reads the environment

FETCH = """
import sys
from forebear.errors import ForebearError
from forebear.models.hub import fetch_snapshot
try:
    print(fetch_snapshot(*sys.argv[1:]))
except ForebearError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large/config.json").write_text("{}")
    (tmp_path / "large/model.safetensors").write_bytes(os.urandom(30_000_000))
    repositories = {
        "org/tiny": Repository(tiny_checkpoint(tmp_path / "tiny")),
        "org/large": Repository(tmp_path / "large"),
        "org/pickled": Repository(tiny_checkpoint(tmp_path / "pickled", pickled=True)),
        "org/gated": Repository(tmp_path / "tiny", token="hf_secret"),
    }
    with serving(Hub(repositories)) as served:
        yield served


@pytest.fixture
def fetch(hub, tmp_path):
    """(name, revision, environment) → what a fresh process prints, and its exit status."""

    def run(name: str, revision: str = "v1", **environment: str) -> subprocess.CompletedProcess:
        hub.asked.clear()
        return subprocess.run(
            [sys.executable, "-c", FETCH, name, revision],
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, **environment},
            text=True,
            capture_output=True,
            check=False,
        )

    return run


def refused(run: subprocess.CompletedProcess, words: str) -> None:
    assert run.returncode == 1
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert "hf_secret" not in run.stderr + run.stdout


def test_a_snapshot_is_fetched_once_and_then_works_offline(hub, fetch, tmp_path):
    run = fetch("org/tiny")
    assert run.returncode == 0, run.stderr
    folder = Path(run.stdout.strip())
    assert folder.is_relative_to(tmp_path / "home")
    assert folder.name == hub.repositories["org/tiny"].commit
    published = hub.repositories["org/tiny"].folder
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == {f.name: f.read_bytes() for f in published.iterdir()}
    offline = fetch("org/tiny", HF_HUB_OFFLINE="1")
    assert offline.stdout == run.stdout
    assert hub.asked == []


def test_a_broken_connection_goes_on_where_it_was(hub, fetch):
    hub.interrupt = {"model.safetensors": 1}
    run = fetch("org/large")
    assert run.returncode == 0, run.stderr
    ranges = [asked for method, path, asked in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert len(ranges) == 2
    assert ranges[0] == ""
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) >= 10_000_000
    fetched, published = Path(run.stdout.strip()), hub.repositories["org/large"].folder
    assert (fetched / "model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()


def test_an_interrupted_download_keeps_the_files_that_are_whole(hub, fetch):
    hub.interrupt = {"model.safetensors": 100}
    refused(fetch("org/tiny"), "the download broke off")
    hub.interrupt = {}
    assert fetch("org/tiny").returncode == 0
    assert [path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "resolve" in path] == [
        "model.safetensors"
    ]


def test_a_corrupted_file_is_removed_and_fetched_again(hub, fetch):
    hub.corrupt = {"model.safetensors"}
    refused(fetch("org/tiny"), "model.safetensors was corrupted")
    hub.corrupt = set()
    run = fetch("org/tiny")
    assert run.returncode == 0, run.stderr
    load_file(Path(run.stdout.strip()) / "model.safetensors")


def test_a_file_changed_in_the_cache_is_noticed(fetch):
    folder = Path(fetch("org/tiny").stdout.strip())
    blob = (folder / "tokenizer.json").resolve()
    blob.write_bytes(blob.read_bytes() + b" ")
    refused(fetch("org/tiny", HF_HUB_OFFLINE="1"), "tokenizer.json was corrupted")


def test_a_gated_model_needs_a_token(fetch):
    refused(fetch("org/gated"), "org/gated: the model is gated")
    assert fetch("org/gated", HF_TOKEN="hf_secret").returncode == 0


def test_a_password_in_the_hubs_address_is_in_no_log(hub, tmp_path):
    stage = {"name": "pretraining", "checkpoint": {"hub": "org/tiny", "revision": "v1"}, "damping": 1.0}
    study = {"corpus": {"embedded": "facts"}, "stages": [stage], "estimators": ["bm25"]}
    folder = copy_workflow(tmp_path / "clone", {"study": "mine", "studies": {"mine": study}})
    environment = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": hub.url.replace("://", "://me:hunter2@"),
        "HF_TOKEN": "hf_secret",
    }
    hub.interrupt = {"model.safetensors": 1}
    run = snakemake(folder, "results/mine/checkpoints/pretraining/manifest.json", **environment)
    assert run.returncode == 0, run.stdout
    log = (folder / "results/mine/logs/download_model/pretraining.log").read_text()
    assert "Error while downloading from http://***@127.0.0.1" in log  # the hub's library says where
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert not {secret for secret in (b"hunter2", b"hf_secret") if secret in path.read_bytes()}, path
    assert "hunter2" not in run.stdout


@pytest.mark.parametrize(
    ("name", "revision", "words"),
    [
        ("org/none", "v1", "org/none: the hub has no such model"),
        ("org/tiny", "v2", "org/tiny: the model has no revision 'v2'"),
        ("a/b/c", "v1", "'a/b/c' is not a model's name on the hub"),
    ],
)
def test_a_wrong_name_or_revision_is_one_sentence(fetch, name, revision, words):
    refused(fetch(name, revision), words)


def test_no_network_is_one_sentence(fetch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused(
            fetch("org/tiny", HF_ENDPOINT=f"http://127.0.0.1:{unused.getsockname()[1]}"), "the hub cannot be reached"
        )
    refused(fetch("org/tiny", HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set")


def test_pickled_weights_are_fetched_where_there_are_no_safetensors_and_converted(fetch, tmp_path):
    run = fetch("org/pickled")
    assert run.returncode == 0, run.stderr
    folder = Path(run.stdout.strip())
    link_checkpoint(folder, tmp_path / "linked")
    assert not (tmp_path / "linked/pytorch_model.bin").exists()
    expected = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights = load_model(tmp_path / "linked").state_dict()
    assert expected.keys() == weights.keys()
    assert all(torch.equal(expected[name], weights[name]) for name in weights)
