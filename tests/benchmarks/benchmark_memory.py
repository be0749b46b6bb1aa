"""Scores within different budgets: planned and measured peak memory, and how much less memory costs.

    python tests/benchmarks/benchmark_memory.py

A randomly initialised Llama of SmolLM2-135M's width, with fewer layers, scores random documents
for random preconditioned queries that lie in a file, with `--rank` as sums of so many outer
products. Each budget runs in a process of its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forebear.data.sequences import Example
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.planning.budget import budget_of, shape_of
from forebear.planning.score_plan import plan_scores
from forebear.queries.files import create_query_columns, read_query_columns
from forebear.scores.pairwise import Request, pairwise_scores

BATCH_TOKENS = 2048
LENGTH = 64


def write_columns(path: Path, blocks: list[Block], queries: int, rank: int | None) -> None:
    with create_query_columns(
        path, torch.zeros(queries), blocks, {"origin": "o"}, list(map(str, range(queries)))
    ) as file:
        for block in blocks:
            for one in (slice(k, k + 1) for k in range(queries)):
                if rank is None:
                    file.write(block.name, one, torch.randn(1, *block.shape))
                else:
                    for side, width in zip(("left", "right"), block.shape, strict=True):
                        file.write_part(side, block.name, one, torch.randn(1, rank, width))


def score(
    columns: Path, scores_file: Path, layers: int, queries: int, documents: int, rank: int | None, budget_mb: int
) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = AutoConfig.for_model(
        "llama", hidden_size=576, num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    blocks = tracked_blocks(model)
    if not columns.exists():
        write_columns(columns, blocks, queries, rank)
        return
    examples = [Example(torch.randint(config.vocab_size, (LENGTH,)), 1) for _ in range(documents)]
    everything = frozenset(block.name for block in blocks)
    shape = shape_of(model, blocks, [LENGTH] * documents)
    budget = budget_of(shape.model_bytes, budget_mb, 0)
    plan = plan_scores(shape, budget, BATCH_TOKENS, {"all": queries}, [("all", everything)], {"all": rank})
    scores = np.empty((documents, queries), np.float32)

    def write(_: str, rows: np.ndarray, values: np.ndarray) -> None:
        scores[rows] = values

    began = time.perf_counter()
    pairwise_scores(
        model, blocks, examples, {"all": read_query_columns(columns).columns}, {"all": Request("all", everything)},
        plan.batch_tokens, write, partitions=plan.partitions, factored=plan.factored,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if not scores_file.exists():
        np.save(scores_file, scores)
    first = np.load(scores_file)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{budget_mb / 1024:6.1f} {len(plan.partitions):10} {len(plan.factored):8} {plan.batch_tokens:12} {plan.bytes / 2**30:10.2f} {peak:10.2f}"
        f" {plan.passes:8.1f} {seconds:9.1f} {np.abs(scores - first).max() / np.abs(first).max():12.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--budgets", type=int, nargs="+", default=[8000, 4000, 3000, 2000, 1500], help="MB")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.layers, options.queries, options.documents, options.rank)
    if options.one:
        score(Path(options.one[0]), Path(options.one[1]), *sizes, int(options.one[2]))
        return
    print(
        "budget partitions factored batch tokens planned GB    peak GB   passes   seconds  largest difference",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/columns.h5", f"{folder}/scores.npy"]
        arguments = [f"--{name}={getattr(options, name)}" for name in ("layers", "queries", "documents")]
        arguments += [] if options.rank is None else [f"--rank={options.rank}"]
        for budget in [options.budgets[0], *options.budgets]:  # the first writes the columns
            subprocess.run([sys.executable, __file__, *arguments, "--one", *files, str(budget)], check=True,
                           stderr=subprocess.DEVNULL)  # fmt: skip


if __name__ == "__main__":
    main()
