"""Score every document against every query, for all estimators at one model, in one pass."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake)
lease_devices(snakemake.params.gpus)

from forebear.batches import shard_documents
from forebear.score_jobs import open_score_job
from forebear.store import shard_kind

params = snakemake.params
job = open_score_job(params, snakemake.input)
documents = shard_documents(job.point.examples, params.batch_tokens, *params.shard)
kind = shard_kind("scores", params.shard)
matrices = {
    name: job.matrix(path, kind, name, {}, documents)
    for name, path in zip(params.estimators, snakemake.output.scores, strict=True)
}
with measured() as cost:
    seconds = job.score(matrices, params.batch_tokens, snakemake.resources.mem_mb, params.gpus)
for name, matrix in matrices.items():
    matrix.finish({"seconds": seconds.get(name, 0.0), "peak_bytes": cost["peak_bytes"]})
