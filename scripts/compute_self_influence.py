"""The documents' self-influence under their own stage's curvature."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.digests import params_digest
from forebear.data.batches import shard_documents
from forebear.gradients.point import open_point
from forebear.models.checkpoints import warn_of_size
from forebear.planning.budget import budget_of, shape_at
from forebear.planning.plan import announce, plan_eigenvalues
from forebear.queries.open_chain import open_inverse
from forebear.scores.files import write_self_influence
from forebear.scores.self_influence import self_influence

params, files = snakemake.params, snakemake.input
warn_of_size("self-influence", files.manifest, snakemake.resources.mem_mb, params.loading)
point = open_point(
    files.manifest,
    files.records,
    **params.loading,
)
factors = (files.eigenbasis, files.eigenvalues)
inverse = open_inverse(params.link, files.manifest, files.fitted, *factors, point.blocks, stored=True)
documents = shard_documents(point.examples, params.batch_tokens, *params.shard)
shape = shape_at(point)
budget = budget_of(shape.model_bytes, snakemake.resources.mem_mb, params.loading["gpus"])
plan = plan_eigenvalues(shape, budget, params.batch_tokens, double=False)  # it holds as much
announce(plan)
options = (point.examples, inverse, plan.batch_tokens, documents)
with measured() as cost:
    values = sum(self_influence(point.model, part.blocks, *options) for part in plan.partitions)
attributes = {
    "study": params.study,
    "params_digest": params_digest(params),
    **point.attributes(documents),
    **cost,
}
write_self_influence(snakemake.output.values, values.numpy(), attributes, params.shard, documents)
