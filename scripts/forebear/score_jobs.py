"""What the jobs that score documents share: a model with its documents, queries, and matrices that take the rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebear.estimators import ESTIMATORS
from forebear.plan import budget_of, plan_scores
from forebear.points import Point, open_point
from forebear.query_files import QueryColumns, read_query_columns
from forebear.resumable import ResumableMatrix
from forebear.scoring import Request, pairwise_scores


@dataclass(frozen=True)
class ScoreJob:
    """Documents at a model, and the queries that they are scored for."""

    point: Point
    queries: Mapping[str, QueryColumns]  # by name of the columns
    requests: Mapping[str, Request]  # by estimator

    def digest(self, estimator: str) -> str:
        """Of the columns that an estimator reads."""
        return self.queries[self.requests[estimator].columns].attributes["content"]

    def score(
        self,
        matrices: Mapping[str, ResumableMatrix],
        documents: np.ndarray,
        batch_tokens: int,
        memory_mb: float,
        gpus: int,
    ) -> dict[str, float]:
        """Plan and run the passes over some documents, of increasing places, that fill the matrices.

        Args:
            matrices: estimator → what takes its rows.
            batch_tokens, memory_mb, gpus: the most that they may take.

        Returns:
            Seconds of each estimator.
        """
        requests = {name: self.requests[name] for name in matrices}
        plan = plan_scores(
            self.point.shape,
            budget_of(self.point.shape.model_bytes, memory_mb, gpus),
            batch_tokens,
            {name: len(columns.losses) for name, columns in self.queries.items()},
            [(request.columns, request.blocks) for request in requests.values()],
            {name: columns.rank for name, columns in self.queries.items()},
        )
        print(plan)
        return pairwise_scores(
            self.point.model,
            self.point.blocks,
            self.point.examples,
            {name: columns.columns for name, columns in self.queries.items()},
            requests,
            plan.batch_tokens,
            write=lambda name, scored, scores: matrices[name].write(
                scored, scores, self.queries[requests[name].columns].places
            ),
            documents=documents,
            partitions=plan.partitions,
            factored=plan.factored,
        )


def open_score_job(
    manifest: str | Path,
    records: str | Path,
    options: Mapping[str, object],
    columns: Mapping[str, str | Path],
    query_digests: Mapping[str, str],
    estimators: Sequence[str],
) -> ScoreJob:
    """Open a model, its documents, and the columns that the estimators read.

    Args:
        options: further arguments of `open_point`.
        columns: name → file.
        query_digests: root attributes that every file of columns must carry.
    """
    point = open_point(manifest, records, **options)
    requests = {
        name: Request(
            ESTIMATORS[name].columns,
            frozenset(block.name for block in point.blocks if block.kind in ESTIMATORS[name].kinds),
            ESTIMATORS[name].cosine,
        )
        for name in estimators
    }
    queries = {name: read_query_columns(path, query_digests) for name, path in columns.items()}
    return ScoreJob(point, queries, requests)
