"""What queries of low rank cost a study's scores, on its finished results.

    python tests/benchmarks/benchmark_compression.py --results results/facts

Every rank is a row: the residual of the median query; size of the queries; rank and linear correlation with the
whole queries' scores, averaged over queries; how many of the ten highest are among the ten and the twenty highest, and
among the ten once the documents with the outermost scores were scored again; and how many those were. `--plain` cuts singular values of the
queries as they are, in place of the documents' metric. It reads the results and writes nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from forebear.factors.files import read_eigenbasis
from forebear.gradients.point import Point, open_point
from forebear.queries.compression import Metric, compress, relative_residual
from forebear.queries.files import read_query_columns
from forebear.scores.pairwise import Request, pairwise_scores
from forebear.scores.rescoring import rescore


def scores_of(point: Point, columns: dict, factored: bool) -> np.ndarray:
    scores, names = np.empty((len(point.examples), len(next(iter(columns.values()))))), frozenset(columns)

    def write(_: str, rows: np.ndarray, values: np.ndarray) -> None:
        scores[rows] = values

    request = {"scores": Request("columns", names)}
    stay = names if factored else ()
    pairwise_scores(
        point.model, point.blocks, point.examples, {"columns": columns}, request, 4096, write, factored=stay
    )
    return scores


def recall(found: np.ndarray, whole: np.ndarray, top: int = 10, among: int = 10) -> float:
    """Mean over queries of the part of the highest scores that is found among the highest of others."""
    best, candidates = np.argsort(-whole, axis=0)[:top].T, np.argsort(-found, axis=0)[:among].T
    return float(np.mean([np.isin(*pair).mean() for pair in zip(best, candidates, strict=True)]))


def rescored_scores(scores: np.ndarray, whole: np.ndarray, number: int) -> tuple[np.ndarray, int]:
    """Scores [N, Q] of which the outermost are exact, and how many documents those are."""
    rounds: list[np.ndarray] = []

    def score(places: np.ndarray) -> dict[str, np.ndarray]:
        rounds.append(places)
        return {"scores": whole}

    return rescore({"scores": scores}, number, score)[0]["scores"], len(rounds[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("results/facts"))
    parser.add_argument("--stage", default="pretraining")
    parser.add_argument("--columns", default="multistage-ekfac")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--rescore", type=int, default=20)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)

    folder, stage = options.results, options.stage
    point = open_point(f"{folder}/models/{stage}/manifest.json", f"{folder}/data/{stage}.jsonl", options.max_length, 0)
    queries = read_query_columns(folder / f"queries/{stage}/{options.columns}.h5")
    matrices, blocks = queries.of(queries.blocks), queries.blocks
    basis = read_eigenbasis(folder / f"factors/{stage}/eigenbasis.h5")
    metrics = {block.name: Metric.of(block, basis) for block in blocks}
    if options.plain:
        for block in blocks:
            left, right = torch.eye(block.shape[0]), torch.eye(block.shape[1])
            metrics[block.name] = Metric((left, left), (right, right))
    whole = scores_of(point, matrices, factored=False)
    print(f"{len(whole)} documents, {whole.shape[1]} queries, {sum(m.nbytes for m in matrices.values()) / 1e6:.1f} MB")
    print("rank  residual      MB  rank corr.  linear corr.  top 10  in the first 20  after rescoring  rescored")
    for rank in options.ranks:
        found = {name: compress(matrices[name], metrics[name], rank) for name in matrices}
        squares = (sum(getattr(part, field) for part in found.values()) for field in ("lost", "whole"))
        residual = relative_residual(*squares).median().item()
        products = {name: part.products for name, part in found.items()}
        size = sum(part.left.nbytes + part.right.nbytes for part in products.values()) / 1e6
        scores = scores_of(point, products, factored=True)
        pairs = list(zip(scores.T, whole.T, strict=True))
        ranks = np.mean([spearmanr(*pair).statistic for pair in pairs])
        lines = np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])
        after, rescored = rescored_scores(scores, whole, options.rescore)
        print(
            f"{rank:4} {residual:9.3f} {size:7.1f} {ranks:11.4f} {lines:13.4f} {recall(scores, whole):7.3f}"
            f" {recall(scores, whole, among=20):16.3f} {recall(after, whole):16.3f} {rescored:9}"
        )


if __name__ == "__main__":
    main()
