"""LDS, tracing and cost of every estimator, and the noise ceiling."""

from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)

import json

import pandas as pd

from forebear.artifacts import read_scores
from forebear.bank import read_bank, read_subsets
from forebear.datasets import file_digest, read_jsonl, read_records
from forebear.evaluation import Bank, evaluate_estimator, noise_ceiling, relevant_indices
from forebear.progress import progress
from forebear.store import atomic_path, read_root

params, files = snakemake.params, snakemake.input
documents, queries = read_records(files.records), read_records(files.queries)
answers = read_jsonl(files.answers)
digest = {"data_digest": file_digest(files.records)}
bank = Bank(read_subsets(files.subsets, digest), *read_bank(files.bank, digest))
relevant = relevant_indices(documents, queries)

rows = []
for name, file in progress(list(zip(params.estimators, files.scores, strict=True)), "evaluate", "estimator"):
    scores, attributes = read_scores(file, {**digest, "query_data_digest": file_digest(files.queries)})
    overhead = [read_root(source) for source in params.overhead[name]]
    rows.append({"estimator": name, **evaluate_estimator(scores, bank, relevant, attributes, overhead, params.seed)})

value, low, high = noise_ceiling(bank, params.seed)
correct = sum(answer["correct"] for answer in answers) / len(answers)
summary = {"noise_ceiling": {"value": value, "low": low, "high": high}, "answered_correctly": correct}
with atomic_path(snakemake.output.table) as path:
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")
with atomic_path(snakemake.output.summary) as path:
    path.write_text(json.dumps({**summary, "queries": len(queries), "documents": len(documents)}, indent=2) + "\n")
