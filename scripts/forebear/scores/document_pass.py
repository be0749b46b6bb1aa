"""What the jobs that score documents share: a model with its documents, queries, and matrices that take the rows."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from forebear.artifacts.digests import params_digest
from forebear.artifacts.growing import ResumableMatrix
from forebear.artifacts.hdf5 import SCORE_UNITS, Attributes
from forebear.artifacts.manifests import point_digests
from forebear.data.records import read_records, record_key
from forebear.estimators import ESTIMATORS
from forebear.gradients.point import Point, open_point
from forebear.planning.budget import budget_of, shape_at
from forebear.planning.plan import announce
from forebear.planning.score_plan import plan_scores
from forebear.queries.files import QueryColumns, read_query_columns
from forebear.scores.pairwise import Request, pairwise_scores


@dataclass(frozen=True)
class ScoreJob:
    """Documents at a model, and the queries that they are scored for."""

    point: Point
    keys: list[str]  # of the study's queries
    queries: Mapping[str, QueryColumns]  # by name of the columns
    requests: Mapping[str, Request]  # by estimator
    attributes: Mapping[str, str]  # of every file of scores: what they were made from, and how

    def matrix(
        self, path: str | Path, kind: str, estimator: str, attributes: Attributes, documents: np.ndarray | None = None
    ) -> ResumableMatrix:
        """What takes an estimator's scores.

        An interrupted pass is continued, and finished scores stay, only with the very same queries
        and code; with other queries those stay that were there.

        Args:
            attributes: further ones of its file.
            documents: places of a shard's documents, ascending; all by default.
        """
        columns = self.queries[self.requests[estimator].columns]
        made_from = {"estimator": estimator, "columns_origin": columns.attributes["origin"]}
        shape = (len(self.point.examples) if documents is None else len(documents), len(self.keys))
        attributes = {**self.attributes, **made_from, **attributes}
        return ResumableMatrix(path, kind, attributes, shape, documents, self.keys, columns.places)

    def score(
        self,
        matrices: Mapping[str, ResumableMatrix],
        batch_tokens: int,
        memory_mb: float,
        gpus: int,
        documents: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Plan and run the passes over some documents that fill the matrices where they are not filled yet.

        Documents that only lack the columns of new queries have a pass with these alone.

        Args:
            matrices: estimator → what takes its rows.
            batch_tokens, memory_mb, gpus: the most that they may take.
            documents: places, ascending; by default all whose rows are missing.

        Returns:
            Seconds of each estimator.
        """
        unfinished = {name: matrix for name, matrix in matrices.items() if not matrix.finished and len(matrix.missing)}
        todo = reduce(np.union1d, (matrix.missing for matrix in unfinished.values()), np.array([], int))
        if documents is not None:
            todo = np.intersect1d(todo, documents)
        kept = reduce(np.intersect1d, (matrix.kept for matrix in unfinished.values()), todo)
        seconds: Counter[str] = Counter()
        for some, queries in ((np.setdiff1d(todo, kept), self.queries), (kept, self._new_queries(unfinished))):
            if len(some):
                seconds.update(self._run(unfinished, some, queries, batch_tokens, memory_mb, gpus))
        return dict(seconds)

    def _new_queries(self, matrices: Mapping[str, ResumableMatrix]) -> dict[str, QueryColumns]:
        """Of every set of columns those that any of its matrices lacks."""
        found = {}
        for name, columns in self.queries.items():
            new = [matrix.new for estimator, matrix in matrices.items() if self.requests[estimator].columns == name]
            if new:
                found[name] = columns.at(np.flatnonzero(np.isin(columns.places, np.concatenate(new))))
        return found

    def _run(
        self,
        matrices: Mapping[str, ResumableMatrix],
        documents: np.ndarray,
        queries: Mapping[str, QueryColumns],
        batch_tokens: int,
        memory_mb: float,
        gpus: int,
    ) -> dict[str, float]:
        requests = {name: self.requests[name] for name in matrices}
        shape = shape_at(self.point)
        plan = plan_scores(
            shape,
            budget_of(shape.model_bytes, memory_mb, gpus),
            batch_tokens,
            {name: len(columns.losses) for name, columns in queries.items()},
            [(request.columns, request.blocks) for request in requests.values()],
            {name: columns.rank for name, columns in queries.items()},
        )
        announce(plan)
        return pairwise_scores(
            self.point.model,
            self.point.blocks,
            self.point.examples,
            {name: columns.columns for name, columns in queries.items()},
            requests,
            plan.batch_tokens,
            write=lambda name, scored, scores: matrices[name].write(
                scored, scores, queries[requests[name].columns].places
            ),
            documents=documents,
            partitions=plan.partitions,
            factored=plan.factored,
        )


def open_score_job(params: Mapping, files: Mapping) -> ScoreJob:
    """Open a model, its documents, and the columns that the estimators read.

    Args:
        params: of the job: `study`, `estimators`, `columns`, `batch_tokens`, `engine`, and
            `loading`, the further arguments of `open_point`.
        files: its inputs: `manifest` and `records` of the documents' point, `last` (manifest of the
            last model) and `queries`, and `columns`, in the order of the names in `params`.
    """
    point = open_point(files["manifest"], files["records"], **params["loading"])
    requests = {
        name: Request(
            ESTIMATORS[name].columns,
            frozenset(block.name for block in point.blocks if block.kind in ESTIMATORS[name].kinds),
            ESTIMATORS[name].cosine,
        )
        for name in params["estimators"]
    }
    of_queries = point_digests(files["last"], files["queries"])
    columns = zip(params["columns"], files["columns"], strict=True)
    attributes = {
        "study": params["study"],
        **SCORE_UNITS,
        **point.digests,
        "query_data_digest": of_queries["data_digest"],
        "engine": params["engine"],
        "options": params_digest({**params["loading"], "batch_tokens": params["batch_tokens"]}),
    }
    return ScoreJob(
        point,
        [record_key(record) for record in read_records(files["queries"])],
        {name: read_query_columns(path, of_queries) for name, path in columns},
        requests,
        attributes,
    )
