"""Gradients of every query's measurement m at the last model."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from forebear.points import open_point
from forebear.query_files import write_query_columns
from forebear.scoring import query_gradients

params = snakemake.params
point = open_point(
    snakemake.input.manifest,
    snakemake.input.queries,
    params.max_length,
    params.gpus,
    params.split_heads,
    end=False,
    precision=params.precision,
)
with measured() as cost:
    gradients, losses = query_gradients(point.model, point.blocks, point.examples, params.batch_tokens)
write_query_columns(
    snakemake.output.gradients, gradients, losses, point.blocks, {"study": params.study, **point.digests, **cost}
)
