"""What the README says of one's own model is short, and works as it stands there."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import yaml

from copies import ROOT, copy_workflow, snakemake
from loopback_hub import Hub, Repository, serving
from published import SENTENCES, own_code_checkpoint, tiny_checkpoint

SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## Use it on your own model\n")[1].split("\n## ")[0]
CONFIG = re.search(r"```yaml\n(.*?)```", SECTION, re.S)[1]
COMMAND = re.search(r"```bash\nsnakemake (.*?)\n```", SECTION, re.S)[1].split()


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with the README's config and the three files of JSON lines that it names."""
    folder = copy_workflow(tmp_path / "clone")
    (folder / "mine.yaml").write_text(CONFIG)
    (folder / "my").mkdir()
    pair = json.dumps({"prompt": "Which city ? Answer :", "completion": " Havana"}) + "\n"
    (folder / "my/documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    (folder / "my/pairs.jsonl").write_text(pair)
    (folder / "my/questions.jsonl").write_text(pair)
    return folder


def test_the_config_has_at_most_twenty_lines():
    assert len(CONFIG.splitlines()) <= 20
    assert COMMAND[-2:] == ["--configfile", "mine.yaml"]


def test_its_models_are_fetched_and_all_else_is_planned(clone, tmp_path):
    study = yaml.safe_load(CONFIG)["studies"]["mine"]
    first = study["stages"][0]["checkpoint"]
    hub = Hub({first["hub"]: Repository(tiny_checkpoint(tmp_path / "published"), commit=first["revision"])})
    folders = {"pretraining": tmp_path / "published", "finetuning": clone / study["stages"][1]["checkpoint"]}
    tiny_checkpoint(folders["finetuning"], seed=1)
    manifests = {stage: f"results/mine/checkpoints/{stage}/manifest.json" for stage in folders}
    with serving(hub):
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        run = snakemake(clone, *manifests.values(), "--configfile", "mine.yaml", **environment)
    assert run.returncode == 0, run.stdout
    for stage, folder in folders.items():
        expected = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
        assert json.loads((clone / manifests[stage]).read_text())["files"] == expected
    planned = snakemake(clone, *COMMAND, "--dry-run")
    assert planned.returncode == 0, planned.stdout
    assert "mine: score the documents of pretraining at the pretraining model" in planned.stdout


def test_a_model_with_code_of_its_own_is_refused_or_used_as_the_key_says(clone):
    study = yaml.safe_load(CONFIG)["studies"]["mine"]
    first, second = study["stages"]
    first["checkpoint"] = str(own_code_checkpoint(clone / "my/own").relative_to(clone))
    second.pop("checkpoint")
    second["training"] = {"epochs": 1, "learning_rate": 1e-3}
    study["max_length"] = 32

    def run(*arguments: str):
        (clone / "mine.yaml").write_text(yaml.safe_dump({"study": "mine", "studies": {"mine": study}}))
        return snakemake(clone, *arguments, "--configfile", "mine.yaml")

    refused = run("results/mine/checkpoints/pretraining/manifest.json")
    assert refused.returncode == 1
    assert "error: my/own: the model brings Python code of its own, which is not run" in refused.stdout
    assert not (clone / "run.txt").exists()
    study["trust_remote_code"] = True
    used = run("results/mine/queries/gradients.h5")
    assert used.returncode == 0, used.stdout
    log = (clone / "results/mine/logs/train_stage/finetuning.log").read_text()
    assert log.count("Python code that came with the model may be run: the study has `trust_remote_code: true`") == 1
