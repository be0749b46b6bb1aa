"""A factor at one curvature point, put together from its shards."""

from forebear.jobs import start

start(snakemake)

from forebear.gathering import gather_factor
from forebear.manifests import point_digests

params, files = snakemake.params, snakemake.input
digests = point_digests(files.manifest, files.records)
gather_factor(snakemake.output.factor, params.factor, files.shards, {**digests, "seed": params.seed})
