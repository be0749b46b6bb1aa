"""Score the outermost documents of every query again, with whole queries in place of compressed ones."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from collections import Counter
from functools import reduce

import numpy as np

from forebear.manifests import point_digests
from forebear.rescoring import rescore
from forebear.resumable import ResumableMatrix
from forebear.score_files import read_scores, write_scores
from forebear.score_jobs import open_score_job
from forebear.store import SCORE_UNITS, read_attributes

params, files = snakemake.params, snakemake.input
query_digests = point_digests(files.last, files.queries)
columns = dict(zip(params.columns, files.columns, strict=True))
options = {key: params[key] for key in ("max_length", "gpus", "split_heads", "precision", "trust_remote_code")}
job = open_score_job(files.manifest, files.records, options, columns, query_digests, params.estimators)

origin = {**job.point.digests, "query_data_digest": query_digests["data_digest"]}
attributes = {"study": params.study, **SCORE_UNITS, **origin, "rescore": params.rescore, "engine": params.engine}
compressed = {}  # by columns: rank and residual
for file in files.compressed:
    found = read_attributes(file, "query columns")
    compressed[found["columns"]] = {key: found[key] for key in ("rank", "residual")}

first, costs, matrices = {}, Counter(), {}
for name, file, path in zip(params.estimators, files.first, snakemake.output.scores, strict=True):
    scores, found = read_scores(file, {**origin, "estimator": name})
    if job.requests[name].columns not in compressed:
        write_scores(path, scores, found)
        continue
    digests = {"first_digest": found["content"], "columns_digest": job.digest(name)}
    of_queries = {**compressed[job.requests[name].columns], "estimator": name}
    matrices[name] = ResumableMatrix(path, "scores", {**attributes, **of_queries, **digests}, scores.shape)
    if not matrices[name].finished:
        first[name], costs[name] = scores, found["seconds"]

unfinished = {name: matrices[name] for name in first}


def score(documents: np.ndarray) -> dict[str, np.ndarray]:
    missing = np.intersect1d(documents, reduce(np.union1d, (matrix.missing for matrix in unfinished.values())))
    costs.update(job.score(unfinished, missing, params.batch_tokens, snakemake.resources.mem_mb, params.gpus))
    return {name: matrix.values for name, matrix in unfinished.items()}


with measured() as cost:
    scores = rescore(first, params.rescore, score)
for name, matrix in matrices.items():
    matrix.finish({"seconds": costs[name], "peak_bytes": cost["peak_bytes"]}, rest=scores.get(name))
