"""What EK-FAC influence scores cost: forebear against kronfluence, on the default study's job.

    pip install -e '.[benchmark]'
    python tests/benchmarks/benchmark_ekfac.py

The job is the embedded corpus `facts` and the default study's two-layer GPT-NeoX, trained
for two epochs (the time does not depend on how well it is trained). Both engines run in one
process, in float32, with the same number of threads, on the same documents and queries,
with labels sampled from the model, full-rank gradients and a damping of 0.1 times the mean
eigenvalue of each map. The columns of the table:

- s: wall-clock seconds, the median of the repeats after a warm-up.
- passes: those seconds in units of one plain forward and backward pass over the same
  documents in forebear's batches. This is the number to compare between machines.
- ratio: kronfluence's seconds over forebear's. Above 1, forebear is faster.

kronfluence computes query gradients, their inverse and the scores in one call. It pads all
documents to one length (forebear pads each batch to its own longest), its times include
the factor files that it writes and reads, and each of its stages gets the fastest of several
batch sizes. The rank correlation of both score matrices shows that they are the same
quantity; each engine samples its own labels. The last table is what a
second training stage adds to forebear's chain of one.
"""

import argparse
import copy
import io
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from forebear.data.batches import batches
from forebear.data.corpora.facts import build_facts
from forebear.data.sequences import Example, encode
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.models.losses import summed_loss
from forebear.models.training import Schedule, build_model, build_tokenizer, train
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.scores.pairwise import Request, pairwise_scores

try:
    import kronfluence_job as kronfluence
except ModuleNotFoundError as missing:
    if missing.name != "kronfluence":
        raise
    kronfluence = None

MODEL = {
    "model_type": "gpt_neox",
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
}
MAX_LENGTH, BATCH_TOKENS, SEED = 64, 4096, 0
DAMPING = 0.1  # times the mean eigenvalue: kronfluence's heuristic for `damping_factor=None`

Seconds = dict[str, float]  # stage → seconds


@dataclass(frozen=True)
class Job:
    """Two frozen models of a chain, and what each is measured on."""

    first: PreTrainedModel
    second: PreTrainedModel
    blocks: list[Block]
    documents: list[Example]
    finetuning: list[Example]
    queries: list[Example]


def build_job(documents: int | None, queries: int | None) -> Job:
    corpus = build_facts()
    tokenizer = build_tokenizer([record for records in corpus.values() for record in records])
    pretraining = encode(corpus["pretraining"][:documents], tokenizer, MAX_LENGTH)
    finetuning = encode(corpus["finetuning"], tokenizer, MAX_LENGTH)
    schedule = Schedule(epochs=2, batch_size=32, learning_rate=2e-3, weight_decay=0.01, warmup=0.1)
    first, _ = train(build_model(MODEL, tokenizer, SEED), pretraining, schedule, [SEED])
    second, _ = train(first, finetuning, schedule, [SEED])
    measured = encode(corpus["queries"][:queries], tokenizer, MAX_LENGTH, end=False)
    models = [model.requires_grad_(False) for model in (first, second)]
    return Job(*models, tracked_blocks(first), pretraining, finetuning, measured)


def timed(function: Callable, repeats: int):
    """Median seconds of a call after a warm-up, without its progress lines, and what the last call returned."""
    seconds = []
    with redirect_stderr(io.StringIO()):
        function()
        for _ in range(repeats):
            began = time.perf_counter()
            result = function()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def plain_pass(model: PreTrainedModel, examples: Sequence[Example]) -> None:
    """Loss and weight gradients of all documents, as ordinary training computes them."""
    for batch in batches(examples, BATCH_TOKENS):
        model.zero_grad()
        summed_loss(model(batch.ids, use_cache=False).logits, batch.labels).backward()


def time_factors(
    model: PreTrainedModel, blocks: list[Block], examples: list[Example], repeats: int
) -> tuple[Seconds, DampedInverse]:
    """Seconds of the three stages of one curvature, and its inverse."""
    seconds: Seconds = {}
    data = (model, blocks, examples)
    seconds["covariances"], covariances = timed(lambda: fit_covariances(*data, SEED, BATCH_TOKENS), repeats)
    seconds["eigenbasis"], basis = timed(lambda: compute_eigenbasis(covariances), repeats)
    seconds["eigenvalues"], values = timed(lambda: fit_eigenvalues(*data, basis, SEED, BATCH_TOKENS), repeats)
    return seconds, DampedInverse(basis, values, Damping(relative=DAMPING))


def score(job: Job, columns: dict[str, dict[str, torch.Tensor]]) -> np.ndarray:
    """Scores [N, Q] of the first set of columns, computed in one pass with the others."""
    scores = np.empty((len(job.documents), len(job.queries)), dtype=np.float32)
    wanted = next(iter(columns))

    def write(estimator: str, places: np.ndarray, rows: np.ndarray) -> None:
        if estimator == wanted:
            scores[places] = rows

    all_blocks = frozenset(block.name for block in job.blocks)
    requests = {name: Request(name, all_blocks) for name in columns}
    pairwise_scores(job.first, job.blocks, job.documents, columns, requests, BATCH_TOKENS, write)
    return scores


def time_forebear(job: Job, repeats: int) -> tuple[Seconds, Seconds, np.ndarray]:
    """Seconds of a chain of one, seconds that a second stage adds, and the scores of the chain of one."""
    blocks = job.blocks
    seconds, inverse = time_factors(job.first, blocks, job.documents, repeats)
    seconds["query gradients"], (gradients, _) = timed(
        lambda: query_gradients(job.first, blocks, job.queries, BATCH_TOKENS), repeats
    )
    seconds["inverse"], one = timed(lambda: apply_chain(gradients, blocks, [inverse]), repeats)
    seconds["scores"], scores = timed(lambda: score(job, {"one": one}), repeats)

    added, later = time_factors(job.second, blocks, job.finetuning, repeats)
    added["inverse"], two = timed(lambda: apply_chain(gradients, blocks, [later]), repeats)
    with_two, _ = timed(lambda: score(job, {"one": one, "two": two}), repeats)
    with_three, _ = timed(lambda: score(job, {"one": one, "two": two, "raw": gradients}), repeats)
    added["scores, second set of columns"] = with_two - seconds["scores"]
    added["scores, third set of columns"] = with_three - with_two
    return seconds, added, scores


def forget_peak_memory() -> None:
    """Let this process's peak start again from what it uses now, where Linux allows it."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def peak_memory() -> str:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((f"{int(line.split()[1]) / 1024:.0f} MiB" for line in lines if line.startswith("VmHWM")), "not known")


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def table(one: float, ours: Seconds, theirs: Seconds) -> str:
    """Rows of stages; kronfluence's columns stay empty where it was not run."""
    parts = ("query gradients", "inverse", "scores")
    rows = {stage: ours[stage] for stage in ours if stage not in parts}
    rows |= {f"  {part}": ours[part] for part in parts}
    rows |= {"queries and scores": sum(ours[part] for part in parts), "total": sum(ours.values())}
    theirs = theirs and {**theirs, "total": sum(theirs.values())}
    lines = [
        f"{'':<20}{'forebear':>18}{'kronfluence':>18}",
        f"{'stage':<20}{'s      passes':>18}{'s      passes':>18}{'ratio':>8}",
    ]
    for stage, seconds in rows.items():
        line = f"{stage:<20}{seconds:>9.2f}{seconds / one:>9.1f}"
        if stage in theirs:
            line += f"{theirs[stage]:>9.2f}{theirs[stage] / one:>9.1f}{theirs[stage] / seconds:>8.1f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, help="only the first N documents (default: all)")
    parser.add_argument("--queries", type=int, help="only the first N queries (default: all 160)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="the median of these counts")
    parser.add_argument("--skip-kronfluence", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print("training the two models ...", file=sys.stderr)
    job = build_job(options.documents, options.queries)
    trainable = copy.deepcopy(job.first).requires_grad_(True)
    one, _ = timed(lambda: plain_pass(trainable, job.documents), max(5, options.repeats))
    print("measuring forebear ...", file=sys.stderr)
    forget_peak_memory()
    ours, added, scores = time_forebear(job, options.repeats)
    memory = f"forebear {peak_memory()}"
    theirs, closing = {}, ["kronfluence was left out (--skip-kronfluence)."]
    if not options.skip_kronfluence and kronfluence is None:
        closing = ["kronfluence is not installed; install it with: pip install -e '.[benchmark]'"]
    elif not options.skip_kronfluence:
        print("measuring kronfluence ...", file=sys.stderr)
        forget_peak_memory()
        modules = list(dict.fromkeys(block.module for block in job.blocks))
        theirs, sizes, their_scores = kronfluence.measure(
            job.first, modules, job.documents, job.queries, lambda function: timed(function, options.repeats)[0]
        )
        memory += f", kronfluence {peak_memory()}"
        per_query = [spearmanr(a, b).statistic for a, b in zip(scores.T, their_scores.T, strict=True)]
        closing = [
            f"kronfluence's batch sizes: {', '.join(f'{stage} {size}' for stage, size in sizes.items())}",
            f"rank correlation of the scores: {spearmanr(scores.ravel(), their_scores.ravel()).statistic:.3f} over all "
            f"pairs, {statistics.median(per_query):.3f} within a query (median)",
        ]

    packages = [f"{name} {version(name)}" for name in ("forebear", "torch", *(["kronfluence"] if theirs else []))]
    print(f"{len(job.documents)} documents, {len(job.queries)} queries, {len(job.finetuning)} fine-tuning sequences")
    print(f"1 pass = {one:.2f} s\n\n{table(one, ours, theirs)}\n\na second stage adds (forebear)")
    print("\n".join(f"{stage:<33}{seconds:>7.2f} s {seconds / one:>6.1f} passes" for stage, seconds in added.items()))
    print("", *closing, f"peak memory of the process: {memory}", sep="\n")
    print(f"{', '.join(packages)}; {torch.get_num_threads()} threads; {machine()}; {date.today()}")


if __name__ == "__main__":
    main()
