"""Write one data set of a study as checked records: an embedded corpus, or a user's file."""

from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)

from forebear.datasets import read_records, write_records
from forebear.facts import build_facts
from forebear.writing import atomic_path

dataset, corpus = snakemake.params.dataset, dict(snakemake.params.corpus)
if corpus.pop("embedded", None) == "facts":
    records = build_facts(**corpus, seed=snakemake.params.seed)[dataset]
else:
    records = read_records(snakemake.input.file)
with atomic_path(snakemake.output.records) as path:
    write_records(path, records)
print(f"{dataset}: {len(records)} records")
