"""Covariances of activations and output gradients at one curvature point."""

from forebear.runtime.job import measured, start, warn

start(snakemake)

from forebear.artifacts.digests import params_digest
from forebear.artifacts.shards import shard_kind
from forebear.data.batches import shard_documents
from forebear.factors.files import create_factors
from forebear.factors.fit import fit_covariances
from forebear.gradients.point import open_point
from forebear.gradients.tracked import tracked_warnings
from forebear.models.checkpoints import warn_of_size
from forebear.planning.budget import budget_of, shape_at
from forebear.planning.plan import announce, plan_covariances

params = snakemake.params
warn_of_size("covariances", snakemake.input.manifest, snakemake.resources.mem_mb, params.loading)
point = open_point(
    snakemake.input.manifest,
    snakemake.input.records,
    **params.loading,
)
documents = shard_documents(point.examples, params.batch_tokens, *params.shard)
for sentence in tracked_warnings({params.point.rpartition("@")[2]: point.tracked_share}):
    warn(sentence)
shape = shape_at(point)
budget = budget_of(shape.model_bytes, snakemake.resources.mem_mb, params.loading["gpus"])
plan = plan_covariances(shape, budget, params.batch_tokens, params.label_samples, not params.loading["gpus"])
announce(plan)
options = (params.seed, plan.batch_tokens, params.label_samples, documents)
attributes = {
    "study": params.study,
    "point": params.point,
    "seed": params.seed,
    "params_digest": params_digest(params),
    **point.attributes(documents),
}
with create_factors(snakemake.output.covariances, shard_kind("covariances", params.shard), attributes) as file:
    with measured() as cost:
        for part in plan.partitions:
            file.write(fit_covariances(point.model, part.blocks, point.examples, *options, double=True))
    file.note(cost)
