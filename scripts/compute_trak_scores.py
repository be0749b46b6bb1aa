"""TRAK's scores from the projected gradients."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.digests import collection_digest, file_digest
from forebear.data.records import Records
from forebear.scores.files import write_scores
from forebear.scores.trak import ensemble_scores, read_members

params, files = snakemake.params, snakemake.input
queries = {"query_data_digest": file_digest(files.queries)}
members = read_members(files.features, {"data_digest": collection_digest(files.collection), **queries})
counts = [len(Records(file)) for file in files.collection]
first = sum(counts[: params.stage_index])
with measured() as cost:
    scores = ensemble_scores(members)[first:][: counts[params.stage_index]]
attributes = {"study": params.study, "data_digest": file_digest(files.records), **queries, **cost}
write_scores(snakemake.output.scores, "trak", scores, attributes)
