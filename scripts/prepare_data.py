"""Write one data set of a study as checked records: an embedded corpus, or a user's file."""

from forebear.jobs import start

start(snakemake)

from forebear.corpora import build_corpus
from forebear.records import read_records, write_records
from forebear.writing import atomic_path

params, dataset = snakemake.params, snakemake.params.dataset
records = build_corpus(**params.embedded)[dataset] if params.embedded else read_records(params.file, params.limit)
with atomic_path(snakemake.output.records) as path:
    write_records(path, records)
print(f"{dataset}: {len(records)} records")
