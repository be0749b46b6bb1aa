"""What EK-FAC costs on a large model: a randomly initialised GPT-NeoX, in float32 against bfloat16.

    python tests/benchmarks/benchmark_large.py --shape dolly --split-heads   # one GPU of 80 GB
    python tests/benchmarks/benchmark_large.py --shape small                 # a CPU, a minute

`dolly` is the shape of dolly-v2-3b and pythia-2.8b; every size can be given by itself
(--layers 8). Times do not depend on what a model has learned, so nothing is downloaded: weights
and tokens are random. The columns of the tables, one for each precision of the model's passes:

- s: wall-clock seconds (processor time with --cpu-time), the median of the repeats after a
  warm-up (the eigenbasis: once).
- passes: those seconds in units of one plain forward and backward pass over the same
  documents in the same batches and precision, with the gradients of all weights.
- tokens/s: of the documents (of the queries, for what is done to them).
- GiB: the most memory during that stage: of the GPU, or of the process on a CPU, where the
  stages before it count too.

What is computed from the passes is in float32, the eigendecompositions in float64. The rank
correlation of the scores of both precisions says what bfloat16 costs. kronfluence, where it is
installed, does the same job in float32 on fused maps.
"""

import argparse
import copy
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from benchmark_ekfac import forget_peak_memory, kronfluence, machine
from scipy.stats import spearmanr
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from forebear.data.batches import batches, number_of_positions
from forebear.data.sequences import Example
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import factor_elements, tracked_blocks
from forebear.models.losses import summed_loss
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.scores.pairwise import Request, pairwise_scores

# Of the model, and of the job on it: --documents and queries of --length tokens.
SHAPES = {
    "dolly": {"layers": 32, "hidden": 2560, "heads": 32, "intermediate": 10240, "vocabulary": 50280}
    | {"documents": 64, "queries": 2, "length": 512, "batch_tokens": 2048},
    "small": {"layers": 4, "hidden": 256, "heads": 8, "intermediate": 1024, "vocabulary": 5028}
    | {"documents": 64, "queries": 16, "length": 128, "batch_tokens": 2048},
}
SEED = 0
DAMPING = 0.1  # times the mean eigenvalue: kronfluence's heuristic for `damping_factor=None`


@dataclass(frozen=True)
class Measured:
    """One stage of one engine."""

    seconds: float
    gib: float


def build_model(options: argparse.Namespace, device: torch.device) -> PreTrainedModel:
    config = GPTNeoXConfig(
        num_hidden_layers=options.layers,
        hidden_size=options.hidden,
        num_attention_heads=options.heads,
        intermediate_size=options.intermediate,
        vocab_size=options.vocabulary,
        max_position_embeddings=2048,
    )
    torch.manual_seed(SEED)
    with device:
        return GPTNeoXForCausalLM(config).eval().requires_grad_(False)


def random_examples(count: int, length: int, vocabulary: int, seed: int) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    return [Example(torch.randint(vocabulary, (length,), generator=generator), 1) for _ in range(count)]


def process_peak() -> int:
    """Bytes: the most that this process has used since `forget_peak_memory`; 0 where Linux does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def measure(device: torch.device, repeats: int, function: Callable, *arguments, clock=time.perf_counter):
    """What a call took after a warm-up, its progress lines left out, and what it returned. No repeats: one call, cold."""
    on_gpu = device.type == "cuda"
    finished = partial(torch.cuda.synchronize, device) if on_gpu else (lambda: None)
    torch.cuda.reset_peak_memory_stats(device) if on_gpu else forget_peak_memory()
    seconds = []
    with redirect_stderr(io.StringIO()):
        if repeats:
            function(*arguments)
        for _ in range(max(1, repeats)):
            finished()
            began = clock()
            result = function(*arguments)
            finished()
            seconds.append(clock() - began)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else process_peak()
    return Measured(statistics.median(seconds), peak / 2**30), result


def plain_pass(model: PreTrainedModel, examples: Sequence[Example], batch_tokens: int) -> None:
    """Loss and gradients of all weights, as ordinary training computes them."""
    for batch in batches(examples, batch_tokens):
        batch = batch.to(model.device)
        model.zero_grad()
        summed_loss(model(batch.ids, use_cache=False).logits, batch.labels).backward()


def run(model: PreTrainedModel, documents: list[Example], queries: list[Example], options: argparse.Namespace):
    """stage → what it took, and the scores [N, Q], for a model in the precision of its passes."""
    device, tokens, repeats, timed = model.device, options.batch_tokens, options.repeats, options.measure
    blocks = tracked_blocks(model, options.split_heads)
    rows = {}
    trainable = copy.deepcopy(model).requires_grad_(True)
    rows["one pass"], _ = timed(device, repeats, plain_pass, trainable, documents, tokens)
    del trainable
    data = (model, blocks, documents)
    rows["covariances"], covariances = timed(device, repeats, fit_covariances, *data, SEED, tokens)
    rows["eigenbasis"], basis = timed(device, 0, compute_eigenbasis, covariances, device)
    del covariances
    rows["eigenvalues"], values = timed(device, repeats, fit_eigenvalues, *data, basis, SEED, tokens)
    rows["query gradients"], (gradients, _) = timed(device, repeats, query_gradients, model, blocks, queries, tokens)
    inverses = [DampedInverse(basis, values, Damping(relative=DAMPING), device=device)]
    rows["inverse"], vectors = timed(device, repeats, apply_chain, gradients, blocks, inverses)
    del basis, values, gradients, inverses
    scores = np.empty((len(documents), len(queries)), np.float32)

    def write(_: str, places: np.ndarray, part: np.ndarray) -> None:
        scores[places] = part

    columns = {"ekfac": vectors}
    requests = {"ekfac": Request("ekfac", frozenset(vectors))}
    rows["scores"], _ = timed(device, repeats, pairwise_scores, *data, columns, requests, tokens, write)
    return rows, scores


def table(title: str, rows: dict[str, Measured], document_tokens: int, query_tokens: int) -> str:
    one = rows["one pass"].seconds
    lines = [f"{title:<20}{'s':>10}{'passes':>9}{'tokens/s':>11}{'GiB':>8}"]
    for stage, took in rows.items():
        tokens = {"query gradients": query_tokens, "inverse": query_tokens}.get(stage, document_tokens)
        rate = "" if stage == "eigenbasis" else f"{tokens / took.seconds:,.0f}"
        lines.append(f"{stage:<20}{took.seconds:>10.2f}{took.seconds / one:>9.2f}{rate:>11}{took.gib:>8.2f}")
    return "\n".join(lines)


def run_kronfluence(
    model: PreTrainedModel, documents: list[Example], queries: list[Example], options: argparse.Namespace
) -> tuple[dict[str, Measured], np.ndarray]:
    """As `run`; what it does to queries is in its scores."""
    modules = list(dict.fromkeys(block.module for block in tracked_blocks(model)))
    peaks = []

    def seconds_of(function: Callable) -> float:
        took, _ = options.measure(model.device, options.repeats, function)
        peaks.append(took.gib)
        return took.seconds

    sizes = (max(1, options.batch_tokens // options.length),)
    seconds, _, scores = kronfluence.measure(model, modules, documents, queries, seconds_of, sizes)
    return {stage: Measured(took, peak) for (stage, took), peak in zip(seconds.items(), peaks, strict=True)}, scores


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="small", help="sizes that are not given one by one")
    for name in SHAPES["dolly"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--split-heads", action="store_true", help="as studies/dolly.yaml")
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--repeats", type=int, default=3, help="the median of these counts")
    parser.add_argument(
        "--cpu-time", action="store_true", help="count this process's processor time: for a busy machine and one thread"
    )
    parser.add_argument("--skip-kronfluence", action="store_true")
    options = parser.parse_args()
    for name, size in SHAPES[options.shape].items():
        if getattr(options, name) is None:
            setattr(options, name, size)
    options.measure = partial(measure, clock=time.process_time if options.cpu_time else time.perf_counter)
    return options


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    model = build_model(options, device)
    documents = random_examples(options.documents, options.length, options.vocabulary, SEED)
    queries = random_examples(options.queries, options.length, options.vocabulary, SEED + 1)
    counts = number_of_positions(documents), number_of_positions(queries)
    blocks = tracked_blocks(model, options.split_heads)
    tracked = sum(block.shape[0] * block.shape[1] for block in blocks)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {tracked:,} in {len(blocks)} tracked blocks; "
        f"factors {4 * sum(factor_elements(blocks)) / 2**30:.2f} GiB, a query {4 * tracked / 2**30:.2f} GiB\n"
        f"{len(documents)} documents and {len(queries)} queries of {options.length} tokens, "
        f"{options.batch_tokens} tokens a batch"
    )
    scores = {}
    for precision in options.precisions:
        print(f"measuring {precision} ...", file=sys.stderr)
        rows, scores[precision] = run(model.to(getattr(torch, precision)), documents, queries, options)
        print("\n" + table(precision, rows, *counts))
    if not options.skip_kronfluence and kronfluence is None:
        print("\nkronfluence is not installed; install it with: pip install -e '.[benchmark]'")
    elif not options.skip_kronfluence:
        print("measuring kronfluence ...", file=sys.stderr)
        model = build_model(options, device)
        trainable = copy.deepcopy(model).requires_grad_(True)
        one, _ = options.measure(device, options.repeats, plain_pass, trainable, documents, options.batch_tokens)
        del trainable
        rows, scores["kronfluence"] = run_kronfluence(model, documents, queries, options)
        print("\n" + table("kronfluence", {"one pass": one, **rows}, *counts))
    first, *others = scores
    for other in others:
        agreement = spearmanr(scores[first].ravel(), scores[other].ravel()).statistic
        print(f"\nrank correlation of the scores, {first} and {other}: {agreement:.4f}", end="")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{machine()}, {options.threads} threads"
    packages = [f"{name} {version(name)}" for name in ("forebear", "torch", *(["kronfluence"] if kronfluence else []))]
    print(f"\n{', '.join(packages)}; {where}; {date.today()}")


if __name__ == "__main__":
    main()
