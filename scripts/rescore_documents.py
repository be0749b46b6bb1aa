"""Score the outermost documents of every query again, with whole queries in place of compressed ones."""

from forebear.runtime.job import measured, start

start(snakemake)

from collections import Counter

import numpy as np

from forebear.artifacts.hdf5 import read_attributes
from forebear.models.checkpoints import warn_of_size
from forebear.queries.files import KIND
from forebear.scores.document_pass import open_score_job
from forebear.scores.files import read_scores, write_scores
from forebear.scores.rescoring import rescore

params, files = snakemake.params, snakemake.input
warn_of_size("scores", files.manifest, snakemake.resources.mem_mb, params.loading)
job = open_score_job(params, files)
compressed = {}  # by columns: the attributes of their file
for file in files.compressed:
    found = read_attributes(file, KIND)
    compressed[found["columns"]] = found

origin = {**job.point.digests, "query_data_digest": job.attributes["query_data_digest"]}
first, costs, matrices = {}, Counter(), {}
for name, file, path in zip(params.estimators, files.first, snakemake.output.scores, strict=True):
    scores, found = read_scores(file, {**origin, "estimator": name})
    if job.requests[name].columns not in compressed:
        write_scores(path, scores, found)
        continue
    attributes = {"rescore": params.rescore, "first_origin": found["columns_origin"]}
    matrices[name] = job.matrix(path, "scores", name, attributes)
    if not matrices[name].finished:
        first[name], costs[name] = scores, found["seconds"]
unfinished = {name: matrices[name] for name in first}


def score(documents: np.ndarray) -> dict[str, np.ndarray]:
    costs.update(
        job.score(unfinished, params.batch_tokens, snakemake.resources.mem_mb, params.loading["gpus"], documents)
    )
    return {name: matrix.values for name, matrix in unfinished.items()}


with measured() as cost:
    scores = rescore(first, params.rescore, score)
for name, matrix in matrices.items():
    lost = {key: compressed[job.requests[name].columns][key] for key in ("rank", "residual")}
    matrix.finish({**lost, "seconds": costs[name], "peak_bytes": cost["peak_bytes"]}, rest=scores.get(name))
