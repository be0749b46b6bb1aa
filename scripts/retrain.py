"""Retrain on this shard's subsets; every retrained model is kept as soon as it is finished."""

from forebear.runtime.job import measured, start

start(snakemake)

from dataclasses import asdict
from pathlib import Path

import numpy as np

from forebear.artifacts.digests import collection_digest, file_digest
from forebear.artifacts.manifests import read_manifest
from forebear.data.chat import Chat
from forebear.data.records import read_records
from forebear.ground_truth.bank import key_of_any_version, plan_retrainings, retraining_key
from forebear.ground_truth.files import read_subsets, write_shard
from forebear.ground_truth.retrain import prepare_stage, retrain
from forebear.models.checkpoints import load_model, load_tokenizer, save_checkpoint
from forebear.models.training import Schedule, build_model, build_tokenizer
from forebear.runtime.devices import device_for
from forebear.runtime.progress import progress

params, files = snakemake.params, snakemake.input
loading = params.loading
data_digest = collection_digest(files.attributed)
subsets = read_subsets(files.subsets, {"data_digest": data_digest})
records = [read_records(file) for file in files.records]
if files.initial:
    tokenizer = load_tokenizer(Path(files.initial).parent, loading["trust_remote_code"])
else:
    tokenizer = build_tokenizer([record for part in records for record in part])
stages = [
    prepare_stage(part, tokenizer, loading["max_length"], task, Schedule(**training), Chat(**loading["chat"]))
    for part, task, training in zip(records[params.first_stage :], params.tasks, params.training, strict=True)
]

recipe = {
    "initial": read_manifest(files.initial)["model_digest"] if files.initial else params.model,
    "training": params.training,
    "tasks": params.tasks,
    "max_length": loading["max_length"],
    "chat": loading["chat"],
    "data": [file_digest(file) for file in files.records],
    "engine": params.engine,
}
plan = plan_retrainings(params.subsets, params.repeats, params.seed)[params.shard - 1 :: params.shards]
keys, bank = [], Path(params.bank)
for retraining in progress(plan, "retrainings", "model"):
    masks = {stage: masks[retraining.subset] for stage, masks in subsets.items()}
    mask = np.concatenate([masks[stage] for stage in params.attributed])
    key = retraining_key(recipe, mask, retraining.seed)
    if params.accept_other_versions:
        key = key_of_any_version(bank, key, params.stages[-1])
    folder = bank / key
    if not (folder / params.stages[-1] / "manifest.json").exists():
        initial = (
            load_model(Path(files.initial).parent, trust_remote_code=loading["trust_remote_code"]).requires_grad_(True)
            if files.initial
            else build_model(params.model, tokenizer, retraining.seed)
        ).to(device_for(loading["gpus"]))
        subset = [masks.get(stage) for stage in params.stages]
        with measured() as cost:
            models = retrain(initial, stages, subset, retraining.seed, params.first_stage)
        facts = {"subset": retraining.subset, "seed": retraining.seed, "cost": cost}
        for stage, (model, record) in zip(params.stages, models, strict=True):
            save_checkpoint(folder / stage, model, tokenizer, stage=stage, training=asdict(record), **facts)
    keys.append(key)

write_shard(snakemake.output.shard, plan, keys, {"study": params.study, "data_digest": data_digest})
