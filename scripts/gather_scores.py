"""What every document has, scores or self-influence, put together from its shards."""

from forebear.runtime.job import start

start(snakemake)

from forebear.artifacts.manifests import point_digests
from forebear.artifacts.shards import gather_rows
from forebear.data.records import Records

params, files = snakemake.params, snakemake.input
digests = point_digests(files.manifest, files.records)
gather_rows(snakemake.output.rows, params.kind, files.shards, len(Records(files.records)), digests)
