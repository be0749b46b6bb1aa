"""Consecutive checkpoints of a chain are one model at two times, and how much of it is tracked is said."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from edited_checkpoints import classifier, edited_config
from forebear.config.study import Study
from forebear.errors import ForebearError
from forebear.factors.files import create_factors
from forebear.gradients.blocks import tracked_blocks, tracked_share
from forebear.gradients.lineage import check_lineage, describe_stage
from forebear.gradients.tracked import tracked_shares, tracked_warnings
from forebear.models.checkpoints import load_model, model_without_weights
from forebear.report.html import evaluation_page
from forebear.report.proponents import proponents_markdown
from forebear.workflow.dry_run import expected_plans
from one_report import ANSWERS, DOCUMENTS, QUERIES, SCORES
from published import tiny_checkpoint

OTHERS = {
    "wider": (
        "llama",
        {"hidden_size": 16, "head_dim": 8},
        r"2 layers of width 16 .* has 2 layers of width 8 .*: model/la",
    ),
    "deeper": ("llama", {"num_hidden_layers": 3}, "3 layers of width 8 .* has 2 layers of width 8"),
    "shallower": ("llama", {"num_hidden_layers": 1}, r"mlp/up_proj is none here|none here and"),
    "other widths inside": ("llama", {"intermediate_size": 24}, r"mlp/gate_proj is 24 × 8 here and 16 × 8 there"),
    "other heads": ("llama", {"num_attention_heads": 4, "head_dim": 2}, "width 8 with 4 heads .* width 8 with 2 heads"),
    "shared heads": ("llama", {"num_key_value_heads": 1}, "k_proj is 4 × 8 here and 8 × 8 there"),
    "biases": ("llama", {"attention_bias": True}, "q_proj is 8 × 9 here and 8 × 8 there"),
    "another family": ("gpt_neox", {}, r"\(gpt_neox\), and that of the stage before has .* \(llama\)"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_stages_of_different_models_are_refused_with_both_shapes(tmp_path, what: str):
    kind, options, words = OTHERS[what]
    before, after = tiny_checkpoint(tmp_path / "before", "llama"), tiny_checkpoint(tmp_path / "after", kind)
    edited_config(after, **options)
    with pytest.raises(ForebearError, match=rf"^finetuning: its checkpoint has .*{words}") as caught:
        check_lineage("finetuning", after, before)
    assert "a chain is one model at several times" in str(caught.value)


def test_the_same_model_later_is_a_chain_with_another_head_or_vocabulary_too(tmp_path, capsys):
    before, after = tiny_checkpoint(tmp_path / "before", "llama"), tiny_checkpoint(tmp_path / "after", "llama", seed=1)
    check_lineage("finetuning", after, before)
    assert "tokenizer" not in capsys.readouterr().out
    classifier(tmp_path / "classifier")
    check_lineage("finetuning", tmp_path / "classifier", before)
    tokenizer = AutoTokenizer.from_pretrained(after)
    tokenizer.add_tokens(["<|user|>"])
    tokenizer.save_pretrained(after)
    edited_config(after, vocab_size=301)
    check_lineage("finetuning", after, before)
    assert "its tokenizer has 301 tokens, that of the stage before 300" in capsys.readouterr().out


def test_a_config_alone_tells_what_is_tracked_of_the_model(tmp_path, capsys):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    model = load_model(folder)
    share = tracked_share(model, tracked_blocks(model))
    assert describe_stage("pretraining", folder) == share
    assert f"({share:.1%})" in capsys.readouterr().out
    assert all(parameter.device.type == "meta" for parameter in model_without_weights(folder).parameters())
    layers = model.model.layers
    norms = sum(p.numel() for name, p in layers.named_parameters() if "norm" in name)
    assert share == 1 - norms / sum(p.numel() for p in layers.parameters())


WARN = """
import sys
from forebear.runtime.job import start, warn
from snakemake.iocontainers import Params
from types import SimpleNamespace
start(SimpleNamespace(log=[sys.argv[1]], threads=1, input=[], output=[], params=Params(fromdict=dict(recipe="r", results="results"))))
print("in the log alone")
warn("little is tracked, https://me:secret@example.org")
"""


def test_a_warning_is_in_the_log_and_where_the_job_was_started(tmp_path):
    command = [sys.executable, "-c", WARN, tmp_path / "job.log"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    said = "warning: little is tracked, https://***@example.org\n"
    assert run.stderr == said
    assert run.stdout == ""
    assert said in (tmp_path / "job.log").read_text()
    assert "in the log alone" in (tmp_path / "job.log").read_text()


def test_too_little_is_a_warning_at_the_head_of_table_and_page(tmp_path):
    told = [{"point": "a", "tracked_share": 0.14}, {"point": "a@b", "tracked_share": 0.5}, {"tracked_share": 0.6}, {}]
    for place, attributes in enumerate(told):
        with create_factors(tmp_path / f"{place}.h5", "covariances", attributes) as file:
            file.write({"a": torch.ones(2)})
    shares = tracked_shares([tmp_path / f"{place}.h5" for place in range(4)], last="c")
    assert shares == {"a": 0.14, "b": 0.5, "c": 0.6}
    (sentence,) = tracked_warnings(shares)
    assert sentence.startswith("Only 14.0% of the parameters in the layers of 'a' are tracked")
    page = proponents_markdown(
        "s", QUERIES, ANSWERS, DOCUMENTS, SCORES, 2, "multistage-ekfac", warnings=tracked_warnings(shares)
    )
    assert page.index("⚠ Only 14.0%") < page.index("## Queries")
    table = pd.DataFrame({"estimator": ["multistage-ekfac", "bm25"], "tracked_share": [0.14, torch.nan]})
    shown = evaluation_page(table, "s", tracked_warnings(shares))
    assert shown.index("⚠ Only 14.0%") < shown.index("<table")
    assert "<td>14%</td>" in shown
    assert "⚠" not in evaluation_page(table, "s")


# A forecast looks at checkpoints before anything has run


def study_with(*checkpoints: Path) -> Study:
    names = ["pretraining", "finetuning"][: len(checkpoints)]
    stages = [
        {"name": name, "checkpoint": str(path), "damping": 1.0, "alpha": 1.0}
        for name, path in zip(names, checkpoints, strict=True)
    ]
    documents = dict.fromkeys(names, "documents.jsonl")
    return Study(corpus={"documents": documents, "queries": "queries.jsonl"}, stages=stages, max_length=32)


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", "{}", '{"model_type": "llama9"}', '{"model_type": "t5"}', '{"model_type": "llava"}'
     , '{"model_type": "vit"}', '{"model_type": "llama", "hidden_size": "wide"}'],
)  # fmt: skip
def test_what_is_wrong_with_a_checkpoint_is_said_before_anything_runs(tmp_path, config: str):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    (folder / "config.json").write_text(config)
    with pytest.raises(ForebearError, match=f"{folder}: the model cannot be loaded"):
        list(expected_plans(study_with(folder), tmp_path / "results"))
    with pytest.raises(ForebearError, match=f"{tmp_path}: there is no config.json of a model; correct `checkpoint`"):
        list(expected_plans(study_with(tmp_path), tmp_path / "results"))


def test_an_adapters_shape_is_expected_to_be_its_bases(tmp_path):
    base, adapter = tiny_checkpoint(tmp_path / "base", "llama"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    results = tmp_path / "results"
    plans = dict(expected_plans(study_with(base, adapter), results))
    assert plans == dict(expected_plans(study_with(base, base), results))
    assert None not in plans.values()
    assert set(dict(expected_plans(study_with(adapter), results)).values()) == {None}
