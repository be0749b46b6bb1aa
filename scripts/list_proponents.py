"""For every query the documents that speak most for and against the answer."""

from forebear.jobs import start

start(snakemake)

import numpy as np

from forebear.evaluation import document_effects
from forebear.records import Records, StagedRecords, file_digest, read_jsonl, read_records
from forebear.reports import PartlyExact, proponents_markdown
from forebear.score_files import read_exact, read_scores
from forebear.tracked import tracked_shares, tracked_warnings
from forebear.writing import atomic_path

params, files = snakemake.params, snakemake.input
of_queries = {"query_data_digest": file_digest(files.queries), "estimator": params.estimator}
digests = [{"data_digest": file_digest(file), **of_queries} for file in files.records]
matrices, attributes = zip(*map(read_scores, files.scores, digests), strict=True)
compressed = None
if "rank" in attributes[0]:
    exact = np.concatenate([read_exact(file) for file in files.scores])
    compressed = PartlyExact(attributes[0]["rank"], max(found["residual"] for found in attributes), exact)
stages = dict(zip(params.stages, map(Records, files.records), strict=True))
page = proponents_markdown(
    params.study,
    read_records(files.queries),
    read_jsonl(files.answers),
    StagedRecords(stages),
    document_effects(dict(zip(stages, matrices, strict=True))),
    params.top,
    params.estimator,
    compressed,
    tracked_warnings(tracked_shares(files.overhead, params.last)),
)
with atomic_path(snakemake.output.page) as path:
    path.write_text(page, encoding="utf-8")
