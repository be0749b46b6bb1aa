"""For every query the documents that speak most for and against the answer."""

from forebear.runtime.job import start

start(snakemake)

import numpy as np

from forebear.artifacts.digests import file_digest
from forebear.data.records import Records, StagedRecords, read_jsonl, read_records
from forebear.evaluation.lds import document_effects
from forebear.gradients.tracked import tracked_shares, tracked_warnings
from forebear.report.proponents import PartlyExact, proponents_markdown
from forebear.runtime.atomic import atomic_path
from forebear.scores.files import read_scores

params, files = snakemake.params, snakemake.input
of_queries, estimator = {"query_data_digest": file_digest(files.queries)}, params.estimator
digests = [{"data_digest": file_digest(file), **of_queries} for file in files.records]
scores = [read_scores(file, estimator, expected) for file, expected in zip(files.scores, digests, strict=True)]
compressed = None
if "rank" in scores[0].attributes:
    exact = np.concatenate([found.exact for found in scores])
    residual = max(found.attributes["residual"] for found in scores)
    compressed = PartlyExact(scores[0].attributes["rank"], residual, exact)
stages = dict(zip(params.stages, map(Records, files.records), strict=True))
page = proponents_markdown(
    params.study,
    read_records(files.queries),
    read_jsonl(files.answers),
    StagedRecords(stages),
    document_effects({stage: found.matrix for stage, found in zip(stages, scores, strict=True)}),
    params.top,
    estimator,
    compressed,
    tracked_warnings(tracked_shares(files.overhead, params.last)),
)
with atomic_path(snakemake.output.page) as path:
    path.write_text(page, encoding="utf-8")
