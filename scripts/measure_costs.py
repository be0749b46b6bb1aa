"""Seconds of fitting and scoring at freshly initialised models of several sizes, and how they grow."""

from forebear.runtime.job import start

start(snakemake)

import json

from forebear.data.records import read_records
from forebear.evaluation.cost_growth import fit_growth, measure_sizes
from forebear.runtime.atomic import atomic_path

params, files = snakemake.params, snakemake.input
documents = read_records(files.records, params.cost["documents"])
queries = read_records(files.queries, params.cost["queries"])
table = measure_sizes(
    params.model,
    params.cost["sizes"],
    documents,
    queries,
    params.max_length,
    params.batch_tokens,
    params.split_heads,
    params.cost["repeats"],
    params.seed,
)
summary = {
    "documents": len(documents),
    "queries": len(queries),
    "repeats": params.cost["repeats"],
    "threads": snakemake.threads,
    "growth": fit_growth(table).to_dict("records"),
}
with atomic_path(snakemake.output.table) as path:
    table.to_csv(path, index=False, float_format="%.6g")
with atomic_path(snakemake.output.summary) as path:
    path.write_text(json.dumps(summary, indent=2) + "\n")
