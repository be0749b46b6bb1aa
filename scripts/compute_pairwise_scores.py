"""Score every document against every query, for all estimators at one model, in one pass."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.shards import shard_kind
from forebear.data.batches import shard_documents
from forebear.models.checkpoints import warn_of_size
from forebear.scores.document_pass import open_score_job

params = snakemake.params
warn_of_size("scores", snakemake.input.manifest, snakemake.resources.mem_mb, params.loading)
job = open_score_job(params, snakemake.input)
documents = shard_documents(job.point.examples, params.batch_tokens, *params.shard)
kind = shard_kind("scores", params.shard)
matrices = {
    name: job.matrix(path, kind, name, {}, documents)
    for name, path in zip(params.estimators, snakemake.output.scores, strict=True)
}
with measured() as cost:
    seconds = job.score(matrices, params.batch_tokens, snakemake.resources.mem_mb, params.loading["gpus"])
for name, matrix in matrices.items():
    matrix.finish({"seconds": seconds.get(name, 0.0), "peak_bytes": cost["peak_bytes"]})
