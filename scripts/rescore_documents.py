"""Score the outermost documents of every query again, with whole queries in place of compressed ones."""

from forebear.runtime.job import measured, start

start(snakemake)

from collections import Counter

import numpy as np

from forebear.artifacts.hdf5 import read_attributes
from forebear.models.checkpoints import warn_of_size
from forebear.queries.files import KIND
from forebear.scores.document_pass import open_score_job
from forebear.scores.files import create_scores, open_scores, scores_of
from forebear.scores.rescoring import rescore

params, files = snakemake.params, snakemake.input
warn_of_size("scores", files.manifest, snakemake.resources.mem_mb, params.loading)
job = open_score_job(params, files)
compressed = {}  # by columns: the attributes of their file
for file in files.compressed:
    found = read_attributes(file, KIND)
    compressed[found["columns"]] = found

path, everything = snakemake.output.scores, np.arange(len(job.point.examples))
with open_scores(files.first, {**job.point.digests, **job.of_queries}) as file:
    first = {name: scores_of(file, name) for name in params.estimators}
columns = {name: job.requests[name].columns for name in params.estimators}
stores = {name: job.store(path, name, everything) for name in params.estimators if columns[name] in compressed}
seconds = Counter()


def score(documents: np.ndarray) -> dict[str, np.ndarray]:
    seconds.update(
        job.score(stores, params.batch_tokens, snakemake.resources.mem_mb, params.loading["gpus"], documents)
    )
    return {name: store.values for name, store in stores.items()}


with measured() as cost:
    rescored, exact = rescore({name: first[name].matrix for name in stores}, params.rescore, score)
with create_scores(path, job.attributes) as file:
    for name, before in first.items():
        took = {key: before.attributes[key] for key in ("columns_origin", "seconds", "peak_bytes")}
        if name not in stores:
            file.write(name, before.matrix, took)
            continue
        own = stores[name].seal({"seconds": seconds[name], "peak_bytes": cost["peak_bytes"]})
        lost = {key: compressed[columns[name]][key] for key in ("rank", "residual")}
        took = {"seconds": took["seconds"] + own["seconds"], "peak_bytes": own["peak_bytes"]}
        file.write(name, rescored[name], {**job.origin(name), **lost, **took}, exact)
