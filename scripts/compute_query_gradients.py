"""Gradients of every query's measurement m at the last model."""

from forebear.runtime.job import measured, start, warn

start(snakemake)

import torch

from forebear.data.records import read_records, record_key
from forebear.gradients.point import open_point
from forebear.gradients.tracked import tracked_warnings
from forebear.models.checkpoints import warn_of_size
from forebear.planning.budget import budget_of, shape_at
from forebear.planning.plan import announce, plan_query_gradients
from forebear.queries.files import create_query_columns, origin_of
from forebear.queries.gradients import stream_query_gradients

params = snakemake.params
warn_of_size("query gradients", snakemake.input.manifest, snakemake.resources.mem_mb, params.loading)
point = open_point(
    snakemake.input.manifest,
    snakemake.input.queries,
    end=False,
    **params.loading,
)
for sentence in tracked_warnings({params.stage: point.tracked_share}):
    warn(sentence)
shape = shape_at(point)
budget = budget_of(shape.model_bytes, snakemake.resources.mem_mb, params.loading["gpus"])
plan = plan_query_gradients(shape, budget, params.batch_tokens)
announce(plan)
path, keys = snakemake.output.gradients, [record_key(record) for record in read_records(snakemake.input.queries)]
origin, losses = origin_of(params, [snakemake.input.manifest]), torch.zeros(len(keys))
attributes = {"study": params.study, "tracked_share": point.tracked_share, **point.digests, "origin": origin}
with create_query_columns(path, losses, point.blocks, attributes, keys) as file:
    with measured() as cost:
        losses[:] = stream_query_gradients(
            point.model, point.blocks, point.examples, plan.batch_tokens, file.write_part, file.missing
        )
    file.note(cost)
