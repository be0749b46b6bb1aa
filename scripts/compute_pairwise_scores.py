"""Score every document against every query, for all estimators at one model, in one pass."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from functools import reduce

import numpy as np

from forebear.datasets import read_records, shard_documents
from forebear.manifests import point_digests
from forebear.resumable import ResumableMatrix
from forebear.score_jobs import open_score_job
from forebear.store import SCORE_UNITS, shard_kind

params, files = snakemake.params, snakemake.input
query_digests = point_digests(files.last, files.queries)
columns = dict(zip(params.columns, files.columns, strict=True))
options = {key: params[key] for key in ("max_length", "gpus", "split_heads", "precision", "trust_remote_code")}
job = open_score_job(files.manifest, files.records, options, columns, query_digests, params.estimators)

documents = shard_documents(job.point.examples, params.batch_tokens, *params.shard)
shape = (job.point.attributes(documents)["sequences"], len(read_records(files.queries)))
# An interrupted pass is continued, and finished scores stay, only with the very same queries and code.
attributes = {
    "study": params.study,
    **SCORE_UNITS,
    **job.point.digests,
    "query_data_digest": query_digests["data_digest"],
    "engine": params.engine,
}
matrices = {
    name: ResumableMatrix(
        path,
        shard_kind("scores", params.shard),
        {**attributes, "estimator": name, "columns_digest": job.digest(name)},
        shape,
        documents,
    )
    for name, path in zip(params.estimators, snakemake.output.scores, strict=True)
}
missing = reduce(np.union1d, (matrix.missing for matrix in matrices.values()))
unfinished = {name: matrix for name, matrix in matrices.items() if not matrix.finished}
with measured() as cost:
    seconds = job.score(unfinished, missing, params.batch_tokens, snakemake.resources.mem_mb, params.gpus)
for name, matrix in matrices.items():
    matrix.finish({"seconds": seconds.get(name, 0.0), "peak_bytes": cost["peak_bytes"]})
