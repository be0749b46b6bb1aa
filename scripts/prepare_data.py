"""Write one data set of a study as checked records: an embedded corpus, or what somebody brings."""

from forebear.runtime.job import start

start(snakemake)

from forebear.data.corpora.by_name import build_corpus
from forebear.data.records import checked_records, write_records
from forebear.data.sources import Source
from forebear.runtime.atomic import atomic_path
from forebear.runtime.progress import progress

params, dataset = snakemake.params, snakemake.params.dataset
records = build_corpus(**params.embedded)[dataset] if params.embedded else checked_records(Source(**params.source))
with atomic_path(snakemake.output.records) as path:
    write_records(path, progress(records, dataset, "record"))
