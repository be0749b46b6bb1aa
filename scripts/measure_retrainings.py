"""The loss of every query at every retrained model; what was measured before is read back."""

from forebear.runtime.job import start

start(snakemake)

from pathlib import Path

import numpy as np

from forebear.artifacts.digests import file_digest
from forebear.artifacts.hdf5 import read_attributes
from forebear.data.records import read_records
from forebear.ground_truth.files import read_shards, write_bank
from forebear.ground_truth.measure import measure_missing

params, files = snakemake.params, snakemake.input
digest = read_attributes(files.subsets, "subsets")["data_digest"]
keys = read_shards(files.shards, {"data_digest": digest})
measurements = measure_missing(
    Path(params.bank), list(keys.values()), params.last, read_records(files.queries), **params.loading
)
subset, seed = (np.array([getattr(retraining, name) for retraining in keys]) for name in ("subset", "seed"))
attributes = {"study": params.study, "data_digest": digest, "query_data_digest": file_digest(files.queries)}
write_bank(snakemake.output.bank, subset, seed, measurements, attributes)
