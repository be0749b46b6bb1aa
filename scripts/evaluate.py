"""LDS, tracing and cost of every estimator, and the noise ceiling."""

from forebear.runtime.job import start

start(snakemake)

import json
from itertools import cycle

import numpy as np
import pandas as pd

from forebear.artifacts.digests import collection_digest, file_digest
from forebear.data.records import Records, read_jsonl, read_records
from forebear.estimators import ESTIMATORS, root
from forebear.evaluation.lds import noise_ceiling
from forebear.evaluation.ranking import candidate_mask, relevant_indices, unknown_names
from forebear.evaluation.table import evaluate_estimator
from forebear.gradients.tracked import tracked_shares
from forebear.ground_truth.bank import Bank
from forebear.ground_truth.files import read_bank, read_subsets
from forebear.runtime.atomic import atomic_path
from forebear.runtime.progress import progress
from forebear.scores.files import open_scores, read_cost, scores_of

params, files = snakemake.params, snakemake.input
documents = [{"id": document["id"]} for file in files.records for document in Records(file)]
queries, answers = read_records(files.queries), read_jsonl(files.answers)
digest = {"data_digest": collection_digest(files.records)}
bank = None
if files.bank:
    subsets = read_subsets(files.subsets, digest)
    measured = read_bank(files.bank, {**digest, "query_data_digest": file_digest(files.queries)})
    bank = Bank(np.concatenate([subsets[stage] for stage in params.stages], axis=1), *measured)
if warning := unknown_names(documents, queries):
    print(warning)
relevant, candidates = relevant_indices(documents, queries), candidate_mask(documents, queries)
digests = [{"data_digest": file_digest(f), "query_data_digest": file_digest(files.queries)} for f in files.records]
stages, expected = params.stages, dict(zip(files.scores, cycle(digests), strict=False))
opened = {file: open_scores(file, digests) for file, digests in expected.items()}

tracked = tracked_shares(files.overhead, params.last)

rows = []
for k, name in enumerate(progress(params.estimators, "evaluate", "estimator")):
    of_stages = files.scores[k * len(stages) :][: len(stages)]
    found = {stage: scores_of(opened[file], name) for stage, file in zip(stages, of_stages, strict=True)}
    scores = {stage: part.matrix for stage, part in found.items()}
    costs = [part.attributes for part in found.values()]
    overhead = [read_cost(source) for source in params.overhead[name]]
    row = evaluate_estimator(scores, bank, relevant, costs, overhead, params.seed, candidates)
    if tracked and ESTIMATORS[root(name)].uses_gradients:
        row["tracked_share"] = min(tracked.values())
    rows.append({"estimator": name, **row})

rows += [{"estimator": name, "undefined": f"undefined: {reason}"} for name, reason in params.undefined.items()]

summary = {
    "tracked_share": tracked,
    "answered_correctly": sum(answer["correct"] for answer in answers) / len(answers),
    "top_k_accuracy": {k: sum(answer["rank"] <= k for answer in answers) / len(answers) for k in (1, 3, 10)},
}
if bank:
    summary["noise_ceiling"] = dict(zip(("value", "low", "high"), noise_ceiling(bank, params.seed), strict=True))
with atomic_path(snakemake.output.table) as path:
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g")
with atomic_path(snakemake.output.summary) as path:
    path.write_text(json.dumps({**summary, "queries": len(queries), "documents": len(documents)}, indent=2) + "\n")
