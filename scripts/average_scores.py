"""Average the scores of chains that differ in their training seeds."""

from forebear.jobs import measured, start

start(snakemake.log[0], snakemake.threads)

import numpy as np

from forebear.datasets import file_digest
from forebear.score_files import read_scores, write_scores

params, files = snakemake.params, snakemake.input
digests = {"data_digest": file_digest(files.records), "query_data_digest": file_digest(files.queries)}
with measured() as cost:
    scores, attributes = zip(*(read_scores(file, digests) for file in files.scores), strict=True)
    mean = np.mean(scores, axis=0)
seconds = cost["seconds"] + sum(one["seconds"] for one in attributes)
write_scores(snakemake.output.scores, mean, {**attributes[0], "estimator": params.estimator, "seconds": seconds})
