"""Score a shard's documents against every query, for all estimators at one model, in one pass."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.data.batches import shard_documents
from forebear.models.checkpoints import warn_of_size
from forebear.scores.document_pass import open_score_job
from forebear.scores.files import create_scores_shard

params, path = snakemake.params, snakemake.output.scores
warn_of_size("scores", snakemake.input.manifest, snakemake.resources.mem_mb, params.loading)
job = open_score_job(params, snakemake.input)
documents = shard_documents(job.point.examples, params.batch_tokens, *params.shard)
stores = {name: job.store(path, name, documents) for name in params.estimators}
with measured() as cost:
    seconds = job.score(stores, params.batch_tokens, snakemake.resources.mem_mb, params.loading["gpus"])
with create_scores_shard(path, job.attributes, params.shard, documents) as file:
    for name, store in stores.items():
        scores = store.finished()
        took = store.seal({"seconds": seconds.get(name, 0.0), "peak_bytes": cost["peak_bytes"]})
        file.write(name, scores, {**job.origin(name), **took})
