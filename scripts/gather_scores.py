"""What every document has, scores or self-influence, put together from its shards."""

from forebear.jobs import start

start(snakemake)

from forebear.gathering import gather_rows
from forebear.manifests import point_digests
from forebear.records import Records

params, files = snakemake.params, snakemake.input
digests = point_digests(files.manifest, files.records)
gather_rows(snakemake.output.rows, params.kind, files.shards, len(Records(files.records)), digests)
