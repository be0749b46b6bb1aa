"""How far scores move when the order of floating-point sums changes: the table of docs/determinism.md.

    python tests/benchmarks/measure_determinism.py

A small GPT-NeoX is trained for one epoch on statements of `facts`. Then factors, preconditioned
queries and scores are computed under each setting, every time in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from forebear.data.corpora.facts import build_facts
from forebear.data.sequences import encode
from forebear.factors.eigenvalue_functions import Damping
from forebear.gradients.blocks import tracked_blocks
from forebear.models.checkpoints import load_model, load_tokenizer, save_checkpoint
from forebear.models.training import Schedule, build_model, build_tokenizer, train
from forebear.queries.chain import apply_chain
from forebear.queries.gradients import query_gradients
from forebear.scores.ensemble import ChainStage, FactorOptions, fit_inverse
from forebear.scores.pairwise import Request, pairwise_scores

MODEL = {
    "model_type": "gpt_neox",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
}
SCHEDULE = Schedule(epochs=1, batch_size=32, learning_rate=2e-3, weight_decay=0.01, warmup=0.1)
RECORDS = build_facts(countries=12, query_countries=4, glosses=False)  # 144 documents, 16 queries
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

# What differs from one thread, batches of 4,096 tokens, and a model trained with one thread.
SETTINGS = {
    "the same again": {},
    "factors and scores with 2 threads": {"threads": 2},
    "batch_tokens 512": {"batch_tokens": 512},
    "queries added one by one": {"additions": len(RECORDS["queries"])},
    "factors and scores with AVX2 alone": {"environment": OLDER},
    "training with 2 threads": {"training_threads": 2},
    "training with AVX2 alone": {"training_environment": OLDER},
}


def train_model(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    tokenizer = build_tokenizer(RECORDS["pretraining"] + RECORDS["finetuning"])
    examples = encode(RECORDS["pretraining"], tokenizer, 64)
    model, _ = train(build_model(MODEL, tokenizer, 0), examples, SCHEDULE, (0, 0))
    save_checkpoint(folder, model, tokenizer)


def score(folder: Path, threads: int, batch_tokens: int, additions: int) -> np.ndarray:
    """[N, Q] scores of single-stage EK-FAC, some of the queries at a time."""
    torch.set_num_threads(threads)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    documents = encode(RECORDS["pretraining"], tokenizer, 64)
    queries = encode(RECORDS["queries"], tokenizer, 64, end=False)
    blocks = tracked_blocks(model)
    stage, options = ChainStage(model, documents, Damping(relative=1e-3)), FactorOptions(0, batch_tokens, 1)
    inverse = fit_inverse(stage, blocks, options)
    requests = {"ekfac": Request("ekfac", frozenset(block.name for block in blocks))}
    scores = np.empty((len(documents), len(queries)), np.float32)
    for some in np.array_split(np.arange(len(queries)), additions):
        gradients, _ = query_gradients(model, blocks, [queries[place] for place in some], batch_tokens)
        columns = {"ekfac": apply_chain(gradients, blocks, [inverse])}

        def write(_: str, places: np.ndarray, values: np.ndarray, some: np.ndarray = some) -> None:
            scores[np.ix_(places, some)] = values

        pairwise_scores(model, blocks, documents, columns, requests, batch_tokens, write)
    return scores


def run(*arguments: object, environment: dict[str, str]) -> None:
    command = [sys.executable, __file__, *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


def measured(folder: Path, setting: dict) -> np.ndarray:
    run(
        "train",
        folder / "model",
        setting.get("training_threads", 1),
        environment=setting.get("training_environment", {}),
    )
    options = [setting.get(key, default) for key, default in (("threads", 1), ("batch_tokens", 4096), ("additions", 1))]
    run("score", folder / "model", *options, folder / "scores.npy", environment=setting.get("environment", {}))
    return np.load(folder / "scores.npy", allow_pickle=False)


def main() -> None:
    print(f"processor: {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as folder:
        plain = measured(Path(folder) / "plain", {})
        print("| change | largest difference, over the largest score | median relative | smallest rank correlation |")
        for k, (name, setting) in enumerate(SETTINGS.items()):
            other = measured(Path(folder) / str(k), setting)
            difference = np.abs(other - plain)
            ranks = min(spearmanr(a, b).statistic for a, b in zip(plain.T, other.T, strict=True))
            largest, median = difference.max() / np.abs(plain).max(), np.median(difference / np.abs(plain))
            print(f"| {name} | {largest:.0e} | {median:.0e} | {ranks:.6f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("job", nargs="*")
    job = parser.parse_args().job
    if not job:
        main()
    elif job[0] == "train":
        train_model(Path(job[1]), int(job[2]))
    else:
        np.save(job[5], score(Path(job[1]), *map(int, job[2:5])))
