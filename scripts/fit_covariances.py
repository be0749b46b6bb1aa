"""Covariances of activations and output gradients at one curvature point."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start, warn

start(snakemake)
lease_devices(snakemake.params.gpus)

from forebear.batches import shard_documents
from forebear.factor_files import create_factors
from forebear.factors import fit_covariances
from forebear.plan import budget_of, plan_covariances
from forebear.points import open_point
from forebear.store import params_digest
from forebear.tracked import tracked_warnings

params = snakemake.params
point = open_point(
    snakemake.input.manifest,
    snakemake.input.records,
    params.max_length,
    params.gpus,
    params.split_heads,
    precision=params.precision,
    trust_remote_code=params.trust_remote_code,
    chat=params.chat,
)
documents = shard_documents(point.examples, params.batch_tokens, *params.shard)
for sentence in tracked_warnings({params.point.rpartition("@")[2]: point.tracked_share}):
    warn(sentence)
budget = budget_of(point.shape.model_bytes, snakemake.resources.mem_mb, params.gpus)
plan = plan_covariances(point.shape, budget, params.batch_tokens, params.label_samples, not params.gpus)
print(plan)
options = (params.seed, plan.batch_tokens, params.label_samples, documents)
attributes = {
    "study": params.study,
    "point": params.point,
    "seed": params.seed,
    "params_digest": params_digest(params),
    **point.attributes(documents),
}
with create_factors(snakemake.output.covariances, "covariances", attributes, params.shard) as file:
    with measured() as cost:
        for part in plan.partitions:
            file.write(fit_covariances(point.model, part.blocks, point.examples, *options))
    file.note(cost)
