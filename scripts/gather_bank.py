"""Put the shards of the bank together, ordered by seed and subset."""

from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)

import numpy as np

from forebear.bank import read_bank, write_bank
from forebear.store import read_attributes

digest = read_attributes(snakemake.input.subsets, "subsets")["data_digest"]
shards = [read_bank(file, {"data_digest": digest}) for file in snakemake.input.shards]
subset, seed, measurements = (np.concatenate(parts) for parts in zip(*shards, strict=True))
order = np.lexsort((subset, seed))
attributes = {"study": snakemake.params.study, "data_digest": digest}
write_bank(snakemake.output.bank, subset[order], seed[order], measurements[order], attributes)
