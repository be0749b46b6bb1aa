"""A study of chats, from a folder and three files to the table of proponents."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import templates
from copies import copy_workflow, snakemake
from sentencepieces import CAPITALS, SENTENCES, llama_tokenizer, sentencepiece_model

CONFIG = """\
study: chat
studies:
  chat:
    corpus:
      documents: {pretraining: documents.jsonl, finetuning: chats.jsonl}
      queries: questions.jsonl
    max_length: 128
    chat: {template: template.jinja}
    estimators: [multistage-ekfac, bm25]
    stages:
      - {name: pretraining, checkpoint: base, damping: 0.1}
      - {name: finetuning, damping: 0.1, training: {epochs: 2, learning_rate: 1e-3}}
"""
TARGETS = ["results/chat/proponents.md", "results/chat/evaluation.csv"]


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def clone(tmp_path) -> Path:
    folder = copy_workflow(tmp_path / "clone", yaml.safe_load(CONFIG))
    tokenizer = llama_tokenizer(sentencepiece_model(tmp_path))
    tokenizer.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(tokenizer))).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "template.jinja").write_text(templates.CHATML)
    write_lines(folder / "documents.jsonl", [{"id": k, "text": text} for k, text in enumerate(SENTENCES)])
    turns = [("human", "gpt", f"Capital of {country} ?", capital) for country, capital in CAPITALS.items()]
    chats = [{"conversations": [{"from": a, "value": q}, {"from": b, "value": c}]} for a, b, q, c in turns]
    write_lines(folder / "chats.jsonl", chats)
    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": c}] for *_, q, c in turns]
    write_lines(folder / "questions.jsonl", [{"messages": m, "relevant": [k]} for k, m in enumerate(messages)])
    return folder


def test_a_study_of_chats_goes_from_files_to_its_tables(clone):
    run = snakemake(clone, *TARGETS)
    assert run.returncode == 0, run.stdout
    page = (clone / TARGETS[0]).read_text()
    assert "- Question: Capital of Portugal ?\n- Right answer: Lisbon" in page
    table = (clone / TARGETS[1]).read_text().splitlines()
    (bm25,) = (dict(zip(table[0].split(","), row.split(","), strict=False)) for row in table if row.startswith("bm25"))
    assert float(bm25["mrr"]) > 0.5  # documents are known by the numbers of their lines
    # An edit of the template's file, or of what carries loss, runs again what reads chats.
    assert "Nothing to be done" in snakemake(clone, *TARGETS, "--dry-run").stdout
    (clone / "template.jinja").write_text(templates.CHATML.replace("helpful", "very helpful"))
    edited = snakemake(clone, *TARGETS, "--dry-run").stdout
    for rule in ("train_stage", "compute_query_gradients", "fit_covariances", "answer_queries"):
        assert rule in edited
    (clone / "template.jinja").unlink()
    missing = snakemake(clone, *TARGETS, "--dry-run")
    assert missing.returncode == 1
    assert "`chat.template`: the file template.jinja cannot be read" in missing.stdout


def test_a_chat_without_template_is_one_sentence(clone):
    config = yaml.safe_load(CONFIG)
    del config["studies"]["chat"]["chat"]
    (clone / "config.yaml").write_text(yaml.safe_dump(config))
    run = snakemake(clone, "results/chat/models/finetuning/manifest.json")
    assert run.returncode == 1
    assert "error: record '1' is a chat (`messages`), but the tokenizer has no chat template" in run.stdout
    assert "Traceback" not in run.stdout
