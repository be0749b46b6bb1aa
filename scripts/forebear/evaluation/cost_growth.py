"""What fitting and scoring cost at models of several sizes, and how the cost grows with the size.

Seconds depend on shapes, not on weights, so the models are freshly initialised.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import linregress
from scipy.stats import t as student
from transformers import PreTrainedModel

from forebear.data.sequences import Example, encode
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.gauss_newton import GaussNewton, pack
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.gradients.outer_products import formed
from forebear.models.training import build_model, build_tokenizer
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.scores.pairwise import Request, pairwise_scores

FITTED = ("covariances", "eigenbasis", "eigenvalues")
STEPS = (*FITTED, "fitting", "queries", "scores", "cg")  # `fitting` is the sum of the three
LEVEL = 0.95  # of the intervals of exponents


def measure_sizes(
    model: Mapping,
    sizes: Sequence[Mapping],
    documents: Sequence[dict],
    queries: Sequence[dict],
    max_length: int,
    batch_tokens: int,
    split_heads: bool,
    repeats: int,
    seed: int,
) -> pd.DataFrame:
    """Seconds of every step at models of every size, one model in memory at a time.

    Args:
        model: the architecture, as the config's `model`.
        sizes: options that replace those of `model`, for one model each.
        documents, queries: records; every word of theirs is in the vocabulary.

    Returns:
        A row for every size and step: the size's options, `parameters` of the tracked blocks,
        `step` (of STEPS), `seconds` (median of the repeats), `low` and `high` (their range).
    """
    tokenizer = build_tokenizer([*documents, *queries])
    sequences = encode(documents, tokenizer, max_length), encode(queries, tokenizer, max_length, end=False)
    rows = []
    for size in sizes:
        built = build_model({**model, **size}, tokenizer, seed).eval().requires_grad_(False)
        blocks = tracked_blocks(built, split_heads)
        parameters = sum(block.shape[0] * block.shape[1] for block in blocks)
        times = [time_steps(built, blocks, *sequences, batch_tokens, seed) for _ in range(repeats)]
        for step in STEPS:
            seconds = [measured[step] for measured in times]
            spread = {"seconds": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}
            rows.append({**size, "parameters": parameters, "step": step, **spread})
        print(f"{parameters:,} parameters: {statistics.median(m['fitting'] for m in times):.2f} s of fitting")
    return pd.DataFrame(rows)


def time_steps(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    documents: Sequence[Example],
    queries: Sequence[Example],
    batch_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Seconds of each of STEPS, once.

    `queries` is their gradients and EK-FAC's inverse; `cg` one product of the exact
    Gauss-Newton matrix of all documents with one query, the work of an iteration of
    conjugate gradient.
    """
    seconds: dict[str, float] = {}

    def timed(step: str, function: Callable, *arguments):
        began = time.perf_counter()
        result = function(*arguments)
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - began
        return result

    data = (model, blocks, documents)
    covariances = timed("covariances", fit_covariances, *data, seed, batch_tokens)
    basis = timed("eigenbasis", compute_eigenbasis, covariances)
    values = timed("eigenvalues", fit_eigenvalues, *data, basis, seed, batch_tokens)
    inverse = DampedInverse(basis, values, Damping(relative=1.0))
    gradients, _ = timed("queries", query_gradients, model, blocks, queries, batch_tokens)
    columns = timed("queries", apply_chain, gradients, blocks, [inverse])
    request = Request("columns", frozenset(block.name for block in blocks))
    scored = ({"columns": columns}, {"scores": request}, batch_tokens, lambda *rows: None)
    timed("scores", pairwise_scores, *data, *scored)
    one = pack({name: formed(gradient[:1]) for name, gradient in gradients.items()}, blocks)
    timed("cg", GaussNewton(*data, batch_tokens), one)
    return {**seconds, "fitting": sum(seconds[step] for step in FITTED)}


def fit_growth(table: pd.DataFrame) -> pd.DataFrame:
    """seconds = factor · parameters^exponent by least squares of the logarithms, for every step.

    Args:
        table: as from `measure_sizes`.

    Returns:
        A row a step with `exponent`, its confidence interval `low` and `high` (Student's t,
        sizes − 2 degrees of freedom) and `factor`.

    Raises:
        ForebearError: fewer than three sizes.
    """
    rows = []
    for step, times in table.groupby("step", sort=False):
        if times["parameters"].nunique() < 3:
            raise ForebearError("`cost.sizes`: models of at least three sizes are needed to see how the cost grows.")
        line = linregress(np.log(times["parameters"]), np.log(times["seconds"]))
        margin = student.ppf((1 + LEVEL) / 2, len(times) - 2) * line.stderr
        interval = {"low": line.slope - margin, "high": line.slope + margin}
        rows.append({"step": step, "exponent": line.slope, **interval, "factor": np.exp(line.intercept)})
    return pd.DataFrame(rows)
