"""Divide scores by the root of the documents' self-influence."""

from forebear.runtime.job import measured, start

start(snakemake)

from forebear.artifacts.digests import file_digest
from forebear.estimators import ESTIMATORS
from forebear.scores.files import read_exact, read_scores, read_self_influence, write_scores
from forebear.scores.self_influence import normalised

params, files = snakemake.params, snakemake.input
digests = {"data_digest": file_digest(files.records)}
of_base = {"query_data_digest": file_digest(files.queries), "estimator": ESTIMATORS[params.estimator].base}
scores, attributes = read_scores(files.scores, {**digests, **of_base})
with measured() as cost:
    scores = normalised(scores, read_self_influence(files.self_influence, digests))
attributes |= {"estimator": params.estimator, "seconds": attributes["seconds"] + cost["seconds"]}
exact = read_exact(files.scores) if "rank" in attributes else None
write_scores(snakemake.output.scores, scores, attributes, exact)
