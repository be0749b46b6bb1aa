"""Write one data set of a study as checked records: an embedded corpus, or what somebody brings."""

from forebear.jobs import start

start(snakemake)

from forebear.corpora import build_corpus
from forebear.progress import progress
from forebear.records import checked_records, write_records
from forebear.sources import Source
from forebear.writing import atomic_path

params, dataset = snakemake.params, snakemake.params.dataset
records = build_corpus(**params.embedded)[dataset] if params.embedded else checked_records(Source(**params.source))
with atomic_path(snakemake.output.records) as path:
    write_records(path, progress(records, dataset, "record"))
