"""Λ at one curvature point: second moments of per-sequence gradients in the eigenbasis."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.digests import params_digest
from forebear.artifacts.shards import shard_kind
from forebear.data.batches import shard_documents
from forebear.factors.files import create_factors, stored_eigenbasis
from forebear.factors.fit import fit_eigenvalues
from forebear.gradients.point import open_point
from forebear.models.checkpoints import warn_of_size
from forebear.planning.budget import budget_of, shape_at
from forebear.planning.plan import announce, plan_eigenvalues

params = snakemake.params
warn_of_size("eigenvalues", snakemake.input.manifest, snakemake.resources.mem_mb, params.loading)
point = open_point(
    snakemake.input.manifest,
    snakemake.input.records,
    **params.loading,
)
basis = stored_eigenbasis(snakemake.input.eigenbasis, {**point.digests, "seed": params.seed})
documents = shard_documents(point.examples, params.batch_tokens, *params.shard)
shape = shape_at(point)
budget = budget_of(shape.model_bytes, snakemake.resources.mem_mb, params.loading["gpus"])
plan = plan_eigenvalues(shape, budget, params.batch_tokens, params.label_samples, not params.loading["gpus"])
announce(plan)
options = (basis, params.seed, plan.batch_tokens, params.label_samples, documents)
attributes = {
    "study": params.study,
    "point": params.point,
    "seed": params.seed,
    "params_digest": params_digest(params),
    **point.attributes(documents),
}
with create_factors(snakemake.output.eigenvalues, shard_kind("eigenvalues", params.shard), attributes) as file:
    with measured() as cost:
        for part in plan.partitions:
            file.write(fit_eigenvalues(point.model, part.blocks, point.examples, *options, double=True))
    file.note(cost)
