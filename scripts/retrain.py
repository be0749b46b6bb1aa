"""Retrain on this shard's subsets; every retraining is kept as soon as it is finished."""

from forebear.devices import lease_devices
from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)
lease_devices(snakemake.params.gpus)

from pathlib import Path

import numpy as np

from forebear.bank import (
    plan_retrainings,
    read_measurement,
    read_subsets,
    retraining_key,
    write_bank,
    write_measurement,
)
from forebear.checkpoints import device_for, load_model, load_tokenizer
from forebear.datasets import collection_digest, encode, file_digest, read_records
from forebear.manifests import read_manifest
from forebear.progress import progress
from forebear.retraining import prepare_stage, retrain
from forebear.training import Schedule, build_model, build_tokenizer

params, files = snakemake.params, snakemake.input
data_digest = collection_digest(files.attributed)
subsets = read_subsets(files.subsets, {"data_digest": data_digest})
records = [read_records(file) for file in files.records]
queries = read_records(files.queries)
if files.initial:
    tokenizer = load_tokenizer(Path(files.initial).parent)
else:
    tokenizer = build_tokenizer([record for part in [*records, queries] for record in part])
stages = [
    prepare_stage(part, tokenizer, params.max_length, task, Schedule(**training))
    for part, task, training in zip(records[params.first_stage :], params.tasks, params.training, strict=True)
]
measured_queries = encode(queries, tokenizer, params.max_length, end=False, classes=stages[-1].classes)

recipe = {
    "initial": read_manifest(files.initial)["model_digest"] if files.initial else params.model,
    "training": params.training,
    "tasks": params.tasks,
    "max_length": params.max_length,
    "data": [file_digest(file) for file in [*files.records, files.queries]],
    "engine": params.engine,
}
plan = plan_retrainings(params.subsets, params.repeats, params.seed)[params.shard - 1 :: params.shards]
rows = []
for retraining in progress(plan, "retrainings", "model"):
    masks = {stage: masks[retraining.subset] for stage, masks in subsets.items()}
    drawn = np.concatenate([masks[stage] for stage in params.attributed])
    path = Path(params.bank) / f"{retraining_key(recipe, drawn, retraining.seed)}.h5"
    if not path.exists():
        model = (
            load_model(Path(files.initial).parent).requires_grad_(True)
            if files.initial
            else build_model(params.model, tokenizer, retraining.seed)
        ).to(device_for(params.gpus))
        subset = [masks.get(stage) for stage in params.stages]
        losses = retrain(model, stages, subset, measured_queries, retraining.seed, params.first_stage)
        write_measurement(path, retraining, losses.numpy())
    rows.append((retraining.subset, retraining.seed, read_measurement(path)))

subset, seed, measurements = (np.array(column) for column in zip(*rows, strict=True))
attributes = {"study": params.study, "data_digest": data_digest}
write_bank(snakemake.output.shard, subset, seed, measurements, attributes)
