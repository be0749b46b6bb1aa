"""What the jobs that score documents share: a model with its documents, queries, and stores that take the scores."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forebear.artifacts.digests import params_digest
from forebear.artifacts.hdf5 import SCORE_UNITS
from forebear.artifacts.manifests import point_digests
from forebear.data.records import read_records, record_key
from forebear.estimators import ESTIMATORS
from forebear.gradients.point import Point, open_point
from forebear.planning.budget import budget_of, shape_at
from forebear.planning.plan import announce
from forebear.planning.score_plan import plan_scores
from forebear.queries.files import QueryColumns, read_query_columns
from forebear.scores.files import ScoreStore
from forebear.scores.pairwise import Request, pairwise_scores


@dataclass(frozen=True)
class ScoreJob:
    """Documents at a model, and the queries that they are scored for."""

    point: Point
    keys: list[str]  # of the study's queries
    queries: Mapping[str, QueryColumns]  # by name of the columns
    requests: Mapping[str, Request]  # by estimator
    made_from: Mapping[str, str]  # what scores depend on beside the queries, and how they are computed
    of_queries: Mapping[str, str]  # what they are scored for

    @property
    def attributes(self) -> dict[str, str]:
        """Of a file of scores."""
        return {**self.made_from, **self.of_queries}

    def origin(self, estimator: str) -> dict[str, str]:
        """Of an estimator's scores: what the queries were made from that it reads."""
        return {"columns_origin": self.queries[self.requests[estimator].columns].attributes["origin"]}

    def store(self, output: str | Path, estimator: str, documents: np.ndarray) -> ScoreStore:
        """What takes an estimator's scores of some documents [n], ascending.

        Those that an earlier job of the same code, data and params has computed are there already.
        """
        asked = self.queries[self.requests[estimator].columns].keys
        made_from = {**self.made_from, **self.origin(estimator)}
        return ScoreStore(output, estimator, made_from, documents, self.keys, asked)

    def score(
        self,
        stores: Mapping[str, ScoreStore],
        batch_tokens: int,
        memory_mb: float,
        gpus: int,
        documents: np.ndarray | None = None,
    ) -> dict[str, float]:
        """Plan and run the passes that compute what stores of the same documents lack.

        Documents that lack the scores of the same queries, in one store or another, share a pass.

        Args:
            stores: estimator → what takes its scores.
            batch_tokens, memory_mb, gpus: the most that they may take.
            documents: indices, ascending, of those that are wanted; all by default.

        Returns:
            Seconds of each estimator.
        """
        everything = next(iter(stores.values())).documents
        missing = np.logical_or.reduce([store.missing for store in stores.values()])
        if documents is not None:
            missing &= np.isin(everything, documents)[:, None]
        seconds: Counter[str] = Counter()
        for rows, queries in alike(missing):
            lacking = {n: store for n, store in stores.items() if store.missing[np.ix_(rows, queries)].any()}
            chosen = {self.keys[query] for query in queries}
            seconds.update(self._run(lacking, everything[rows], chosen, batch_tokens, memory_mb, gpus))
        return dict(seconds)

    def _run(
        self,
        stores: Mapping[str, ScoreStore],
        documents: np.ndarray,
        keys: set[str],
        batch_tokens: int,
        memory_mb: float,
        gpus: int,
    ) -> dict[str, float]:
        requests = {name: self.requests[name] for name in stores}
        queries = {name: self.queries[name].of_keys(keys) for name in {r.columns: r for r in requests.values()}}
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
            write=lambda name, scored, scores: stores[name].write(scored, scores, queries[requests[name].columns].keys),
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
    made_from = {
        "study": params["study"],
        **SCORE_UNITS,
        **point.digests,
        "engine": params["engine"],
        "options": params_digest({**params["loading"], "batch_tokens": params["batch_tokens"]}),
    }
    return ScoreJob(
        point,
        [record_key(record) for record in read_records(files["queries"])],
        {name: read_query_columns(path, of_queries) for name, path in columns},
        requests,
        made_from,
        {"query_data_digest": of_queries["data_digest"]},
    )


def alike(missing: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of a mask [n, Q] the rows that have the same entries, and these: (rows, indices of entries), both ascending.

    Rows without any are left out.
    """
    patterns, pattern = np.unique(missing, axis=0, return_inverse=True)
    for k, entries in enumerate(patterns):
        if entries.any():
            yield np.flatnonzero(pattern.ravel() == k), np.flatnonzero(entries)
