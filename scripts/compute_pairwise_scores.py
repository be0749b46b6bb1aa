"""Score every document against every query, for all estimators at one model, in one pass."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from functools import reduce

import numpy as np

from forebear.datasets import read_records, shard_documents
from forebear.estimators import ESTIMATORS
from forebear.manifests import point_digests
from forebear.plan import budget_of, plan_scores
from forebear.points import open_point
from forebear.query_files import read_query_columns
from forebear.resumable import ResumableMatrix
from forebear.scoring import Request, pairwise_scores
from forebear.store import SCORE_UNITS, shard_kind

params, files = snakemake.params, snakemake.input
point = open_point(
    files.manifest,
    files.records,
    params.max_length,
    params.gpus,
    params.split_heads,
    precision=params.precision,
    trust_remote_code=params.trust_remote_code,
)
query_digests = point_digests(files.last, files.queries)
queries = {
    name: read_query_columns(file, query_digests) for name, file in zip(params.columns, files.columns, strict=True)
}
requests = {
    name: Request(
        ESTIMATORS[name].columns,
        frozenset(block.name for block in point.blocks if block.kind in ESTIMATORS[name].kinds),
        ESTIMATORS[name].cosine,
    )
    for name in params.estimators
}

documents = shard_documents(point.examples, params.batch_tokens, *params.shard)
shape = (point.attributes(documents)["sequences"], len(read_records(files.queries)))
attributes = {"study": params.study, **SCORE_UNITS, **point.digests, "query_data_digest": query_digests["data_digest"]}
# An interrupted pass is continued, and finished scores stay, only with the very same queries and code.
digests = {name: columns.attributes["content"] for name, columns in queries.items()}
matrices = {
    name: ResumableMatrix(
        path,
        shard_kind("scores", params.shard),
        {
            **attributes,
            "estimator": name,
            "columns_digest": digests[requests[name].columns],
            "engine": params.engine,
        },
        shape,
        documents,
    )
    for name, path in zip(params.estimators, snakemake.output.scores, strict=True)
}
wanted = {name: request for name, request in requests.items() if not matrices[name].finished}
budget = budget_of(point.shape.model_bytes, snakemake.resources.mem_mb, params.gpus)
counts = {name: len(columns.losses) for name, columns in queries.items()}
reads = [(request.columns, request.blocks) for request in wanted.values()]
ranks = {name: columns.rank for name, columns in queries.items()}
plan = plan_scores(point.shape, budget, params.batch_tokens, counts, reads, ranks)
print(plan)
with measured() as cost:
    seconds = pairwise_scores(
        point.model,
        point.blocks,
        point.examples,
        {name: queries[name].columns for name in params.columns},
        wanted,
        plan.batch_tokens,
        write=lambda estimator, scored, scores: matrices[estimator].write(
            scored, scores, queries[requests[estimator].columns].places
        ),
        documents=reduce(np.union1d, (matrix.missing for matrix in matrices.values())),
        partitions=plan.partitions,
        factored=plan.factored,
    )
for name, matrix in matrices.items():
    matrix.finish({"seconds": seconds.get(name, 0.0), "peak_bytes": cost["peak_bytes"]})
