"""The loss of every query at every retrained model; what was measured before is read back."""

from forebear.runtime.job import start

start(snakemake)

from pathlib import Path

import numpy as np

from forebear.artifacts.digests import file_digest
from forebear.artifacts.hdf5 import read_attributes
from forebear.data.chat import Chat
from forebear.data.records import read_records, record_key
from forebear.data.sequences import encode
from forebear.ground_truth.bank import checked_folder
from forebear.ground_truth.files import read_measurements, read_shards, write_bank, write_measurements
from forebear.models.checkpoints import load_model, load_tokenizer
from forebear.models.heads import classes_by_label
from forebear.models.losses import evaluate_losses
from forebear.runtime.progress import progress

params, files = snakemake.params, snakemake.input
loading = params.loading
digest = read_attributes(files.subsets, "subsets")["data_digest"]
keys = read_shards(files.shards, {"data_digest": digest})
records = read_records(files.queries)
wanted = {record_key(record): record for record in records}

measurements = []
for key in progress(keys.values(), "measurements", "model"):
    path = Path(params.bank) / key / "measurements.h5"
    known = read_measurements(path)
    new = {query: record for query, record in wanted.items() if query not in known}
    if new:
        folder = checked_folder(path.parent / params.last)
        model = load_model(folder, loading["gpus"], trust_remote_code=loading["trust_remote_code"])
        tokenizer = load_tokenizer(folder, loading["trust_remote_code"])
        classes = classes_by_label(model)
        examples = encode(list(new.values()), tokenizer, loading["max_length"], False, classes, Chat(**loading["chat"]))
        known |= dict(zip(new, evaluate_losses(model, examples).tolist(), strict=True))
        write_measurements(path, known)
    measurements.append([known[record_key(record)] for record in records])

subset, seed = (np.array([getattr(retraining, name) for retraining in keys]) for name in ("subset", "seed"))
attributes = {"study": params.study, "data_digest": digest, "query_data_digest": file_digest(files.queries)}
write_bank(snakemake.output.bank, subset, seed, np.array(measurements, np.float32), attributes)
