"""Correlation of every estimator with the reference, and of the reference with its second run."""

from forebear.runtime.job import start

start(snakemake)

import json

import pandas as pd

from forebear.artifacts.digests import file_digest
from forebear.evaluation.agreement import agreement
from forebear.queries.files import solves_of
from forebear.runtime.atomic import atomic_path
from forebear.scores.files import open_scores, read_cost, scores_of

params, files = snakemake.params, snakemake.input
digests = {"data_digest": file_digest(files.records), "query_data_digest": file_digest(files.queries)}
opened = {file: open_scores(file, digests) for file in {*files.scores, *files.reference, *files.check}}
reference = scores_of(opened[files.reference[0]], "reference")
check = scores_of(opened[files.check[0]], "reference-check").matrix


def seconds_of(estimator: str, cost: dict) -> float:
    """All that an estimator's scores took."""
    overhead = sum(read_cost(source)["seconds"] for source in params.overhead[estimator])
    return cost["seconds"] + cost.get("overhead_seconds", 0.0) + overhead


rows = []
for name, file in zip(params.estimators, files.scores, strict=True):
    scores = scores_of(opened[file], name)
    agreed = agreement(scores.matrix, reference.matrix, params.seed)
    rows.append({"estimator": name, **agreed, "seconds": seconds_of(name, scores.attributes)})
summary = {
    "documents": len(reference.matrix),
    "queries": reference.matrix.shape[1],
    "agreement_of_two_runs": agreement(check, reference.matrix, params.seed),
    "reference_seconds": seconds_of("reference", reference.attributes),
    "reference": solves_of(files.reference_columns),
    "check": solves_of(files.check_columns),
}
with atomic_path(snakemake.output.table) as path:
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")
with atomic_path(snakemake.output.summary) as path:
    path.write_text(json.dumps(summary, indent=2) + "\n")
