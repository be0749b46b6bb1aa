"""Predictions of the retrainings for a grid of dampings and α."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.manifests import point_digests
from forebear.evaluation.damping_sweep import Grid, subset_gradients, sweep
from forebear.evaluation.files import write_sweep
from forebear.gradients.point import open_point
from forebear.ground_truth.files import read_subsets
from forebear.queries.files import read_query_columns
from forebear.queries.open_chain import open_inverse

params, files = snakemake.params, snakemake.input
point = open_point(
    files.manifests[-1],
    files.records[-1],
    **params.loading,
)
queries = read_query_columns(files.gradients, point_digests(files.last, files.queries))
masks = read_subsets(files.subsets)[params.stage]
parts = zip(params.links, files.manifests, files.records, files.eigenbasis, files.eigenvalues, strict=True)
*later, own = [open_inverse(*part, point.blocks) for part in parts]
grid = Grid(**params.grid)
with measured() as cost:
    sums = subset_gradients(point.model, point.blocks, point.examples, masks, params.batch_tokens)
    predictions = sweep(queries.of(point.blocks), sums, point.blocks, own, later, grid)
write_sweep(snakemake.output.predictions, predictions.numpy(), params.grid, {"study": params.study, **cost})
