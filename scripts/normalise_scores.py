"""Divide scores by the root of the documents' self-influence."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.digests import file_digest
from forebear.estimators import ESTIMATORS
from forebear.scores.files import read_scores, read_self_influence, write_scores
from forebear.scores.self_influence import normalised

params, files = snakemake.params, snakemake.input
digests = {"data_digest": file_digest(files.records)}
expected = {**digests, "query_data_digest": file_digest(files.queries)}
base = read_scores(files.scores, ESTIMATORS[params.estimator].base, expected)
with measured() as cost:
    scores = normalised(base.matrix, read_self_influence(files.self_influence, digests))
attributes = {**base.attributes, "seconds": base.attributes["seconds"] + cost["seconds"]}
write_scores(snakemake.output.scores, params.estimator, scores, attributes, base.exact)
