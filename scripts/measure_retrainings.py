"""The loss of every query at every retrained model; what was measured before is read back."""

from forebear.devices import lease_devices
from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from pathlib import Path

import numpy as np

from forebear.bank import checked_folder, read_measurement, read_shards, write_bank, write_measurement
from forebear.checkpoints import load_model, load_tokenizer
from forebear.datasets import encode, file_digest, read_records
from forebear.heads import classes_by_label
from forebear.progress import progress
from forebear.store import read_attributes
from forebear.training import evaluate_losses

params, files = snakemake.params, snakemake.input
digest = read_attributes(files.subsets, "subsets")["data_digest"]
keys = read_shards(files.shards, {"data_digest": digest})
queries, query_digest = read_records(files.queries), file_digest(files.queries)

measurements = []
for key in progress(keys.values(), "measurements", "model"):
    path = Path(params.bank) / key / f"{query_digest}.h5"
    if not path.exists():
        folder = checked_folder(path.parent / params.last)
        model = load_model(folder, params.gpus, trust_remote_code=params.trust_remote_code)
        tokenizer = load_tokenizer(folder, params.trust_remote_code)
        examples = encode(queries, tokenizer, params.max_length, end=False, classes=classes_by_label(model))
        losses = evaluate_losses(model, examples)
        write_measurement(path, losses.numpy())
    measurements.append(read_measurement(path))

subset, seed = (np.array([getattr(retraining, name) for retraining in keys]) for name in ("subset", "seed"))
attributes = {"study": params.study, "data_digest": digest, "query_data_digest": query_digest}
write_bank(snakemake.output.bank, subset, seed, np.stack(measurements), attributes)
