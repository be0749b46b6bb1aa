"""A factor at one curvature point, put together from its shards."""

from forebear.runtime.job import start

start(snakemake)

from forebear.artifacts.manifests import point_digests
from forebear.artifacts.shards import gather_factor

params, files = snakemake.params, snakemake.input
digests = point_digests(files.manifest, files.records)
gather_factor(snakemake.output.factor, params.factor, files.shards, {**digests, "seed": params.seed})
