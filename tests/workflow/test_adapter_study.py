"""From two folders, one of them a LoRA adapter, and three files to a table of proponents, as docs/models.md says it."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import unpadded_loss
from copies import ROOT, copy_workflow, snakemake
from edited_checkpoints import edited_config, edited_weights
from forebear.data.sequences import encode
from loopback_hub import Hub, Repository, serving
from published import SENTENCES, own_code_checkpoint
from trained_adapters import LORA, base_model, trained_adapter

PAGE = (ROOT / "docs/models.md").read_text(encoding="utf-8")
CONFIG = re.search(r"```yaml\n(.*?)```", PAGE.split("## Adapters\n")[1], re.S)[1]
PAIRS = [
    {"prompt": "Which city ? Answer :", "completion": " Havana"},
    {"prompt": "The capital of Italy is", "completion": " Rome"},
]
TABLE = "results/mine/proponents.md"
OTHERS = ("results/mine/evaluation.csv", "results/mine/pages/evaluation.html", "results/mine/provenance.json")


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone with the page's config, what it names, and nothing else."""
    folder = copy_workflow(tmp_path / "clone", yaml.safe_load(CONFIG))
    (folder / "my").mkdir()
    (folder / "my/documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    for name in ("pairs", "questions"):
        (folder / f"my/{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    base_model(folder / "my/base")
    trained_adapter(folder / "my/adapter", folder / "my/base", peft.LoraConfig(**LORA))
    return folder


def changed(clone: Path, **values: object) -> None:
    config = yaml.safe_load((clone / "config.yaml").read_text())
    for key, value in values.items():
        place = config["studies"]["mine"]
        *parents, last = re.findall(r"[a-z_]+|\d+", key)
        for part in parents:
            place = place[int(part) if part.isdigit() else part]
        place[last] = value
    (clone / "config.yaml").write_text(yaml.safe_dump(config))


def refused(run, words: str) -> None:
    assert run.returncode == 1
    assert words in run.stdout
    assert "Traceback" not in run.stdout


def test_the_config_has_at_most_twenty_lines():
    assert len(CONFIG.splitlines()) <= 20


def test_two_folders_and_three_files_become_a_table(clone):
    planned = snakemake(clone, TABLE, "--dry-run")
    assert planned.returncode == 0, planned.stdout
    run = snakemake(clone, TABLE, *OTHERS)
    assert run.returncode == 0, run.stdout
    page = (clone / TABLE).read_text()
    assert "Havana" in page
    assert "⚠" not in page
    assert "warning" not in run.stdout
    provenance = json.loads((clone / OTHERS[-1]).read_text())["files"]
    told = provenance["results/mine/checkpoints/finetuning/manifest.json"]
    before = provenance["results/mine/checkpoints/pretraining/manifest.json"]
    assert told["base"]["model_digest"] == before["model_digest"]
    assert told["adapter"]["kind"] == "LORA"
    assert told["tracked_share"] == before["tracked_share"] > 0.9
    assert provenance["results/mine/factors/pretraining/covariances.h5"]["tracked_share"] == told["tracked_share"]
    shares = json.loads((clone / "results/mine/evaluation.json").read_text())["tracked_share"]
    assert shares == dict.fromkeys(("pretraining", "finetuning"), told["tracked_share"])
    # What was attributed is the merged model: its answers have the loss that peft computes.
    answers = [json.loads(line) for line in (clone / "results/mine/queries/answers.jsonl").read_text().splitlines()]
    plain = AutoModelForCausalLM.from_pretrained(clone / "my/base")
    adapted = peft.PeftModel.from_pretrained(plain, clone / "my/adapter").get_base_model()
    examples = encode(PAIRS, AutoTokenizer.from_pretrained(clone / "my/base"), 64, end=False)
    with torch.no_grad():
        losses = [unpadded_loss(adapted, example).item() for example in examples]
    assert [answer["loss"] for answer in answers] == pytest.approx(losses, rel=1e-4)


def test_an_adapter_on_the_hub_and_its_base_beside_it(clone, tmp_path):
    base, adapter = clone / "my/base", clone / "my/adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/base"}))
    changed(clone, **{"stages.0.checkpoint": {"hub": "org/base", "revision": "v1"}})
    changed(clone, **{"stages.1.checkpoint": {"hub": "org/adapter", "revision": "v1"}})
    merged = "results/mine/checkpoints/finetuning/manifest.json"
    with serving(Hub({"org/base": Repository(base), "org/adapter": Repository(adapter, commit="d" * 40)})) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        run = snakemake(clone, merged, **environment)
        assert run.returncode == 0, run.stdout
        assert json.loads((clone / merged).read_text())["adapter"]["base_model_name_or_path"] == "org/base"
        planned = snakemake(clone, TABLE, "--dry-run", "--forceall", **environment)
        assert planned.returncode == 0, planned.stdout
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/chat"}))
        changed(clone, **{"stages.1.checkpoint": {"hub": "org/other", "revision": "v1"}})
        hub.repositories["org/other"] = Repository(adapter, commit="e" * 40)
        refused(snakemake(clone, merged, **environment), "was trained on org/chat, and the stage before is org/base;")


def test_what_cannot_be_a_chain_is_refused_when_it_is_fetched(clone):
    changed(clone, **{"stages.0.checkpoint": "my/adapter"})
    planned = snakemake(clone, TABLE, "--dry-run")
    assert planned.returncode == 0, planned.stdout
    refused(snakemake(clone, TABLE), "error: my/adapter: is an adapter, which needs the model of a stage before it")
    changed(clone, **{"stages.0.checkpoint": "my/base", "stages.1.checkpoint": "my/other"})
    base_model(clone / "my/other", "gpt_neox")
    refused(snakemake(clone, TABLE), "finetuning: its checkpoint has 2 layers of width 8 with 2 heads (gpt_neox), and")
    edited_config(clone / "my/base", quantization_config={"quant_method": "gptq"})
    planned = snakemake(clone, TABLE, "--dry-run")
    assert planned.returncode == 0, planned.stdout
    refused(snakemake(clone, TABLE), "error: my/base: is a quantised checkpoint")
    assert not (clone / "results/mine/queries").exists()


def test_a_model_of_which_little_is_tracked_is_a_warning_everywhere(clone):
    """Its layers have a large parameter that is no linear map."""
    own = own_code_checkpoint(clone / "my/own")
    code = own / "modeling_own.py"
    code.write_text(
        code.read_text()
        + "\n    def __init__(self, config):\n        import torch\n\n        super().__init__(config)\n"
        + "        for layer in self.model.decoder.layers:\n"
        + "            layer.table = torch.nn.Parameter(torch.zeros(500_000))\n        self.post_init()\n"
    )
    tables = {f"model.decoder.layers.{k}.table": torch.zeros(500_000) for k in range(2)}
    edited_weights(own, lambda w: w.update(tables))
    changed(clone, **{"stages.0.checkpoint": "my/own", "trust_remote_code": True, "max_length": 32})
    config = yaml.safe_load((clone / "config.yaml").read_text())
    study = config["studies"]["mine"]
    study["stages"] = study["stages"][:1]
    study["corpus"]["documents"].pop("finetuning")
    (clone / "config.yaml").write_text(yaml.safe_dump(config))
    run = snakemake(clone, TABLE, *OTHERS)
    assert run.returncode == 0, run.stdout
    sentence = re.search(r"Only \d+\.\d% of the parameters in the layers of 'pretraining' are tracked", run.stdout)[0]
    assert f"warning: {sentence}" in run.stdout
    assert f"warning: {sentence}" in (clone / "results/mine/logs/download_model/pretraining.log").read_text()
    assert f"⚠ {sentence}" in (clone / TABLE).read_text()
    assert f"⚠ {sentence.split(' of the layers')[0][:20]}" in (clone / OTHERS[1]).read_text()
    assert "tracked_share" in (clone / OTHERS[0]).read_text().splitlines()[0]
