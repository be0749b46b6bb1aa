"""Divide scores by the root of the documents' self-influence."""

from forebear.runtime.job import measured, start

start(snakemake)

import numpy as np

from forebear.artifacts.digests import file_digest
from forebear.estimators import ESTIMATORS
from forebear.scores.files import exact_of, open_scores, read_self_influence, scores_of, write_scores

params, files = snakemake.params, snakemake.input
base, digests = ESTIMATORS[params.estimator].base, {"data_digest": file_digest(files.records)}
with open_scores(files.scores, {**digests, "query_data_digest": file_digest(files.queries)}) as file:
    scores, attributes = scores_of(file, base)
    exact = exact_of(file, base) if "rank" in attributes else None
with measured() as cost:
    normalised = scores / np.sqrt(read_self_influence(files.self_influence, digests))[:, None]
attributes |= {"seconds": attributes["seconds"] + cost["seconds"]}
write_scores(snakemake.output.scores, params.estimator, normalised, attributes, exact)
