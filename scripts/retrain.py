"""Retrain on this shard's subsets; every retrained model is kept as soon as it is finished."""

from forebear.runtime.job import start

start(snakemake)

from pathlib import Path

from forebear.artifacts.digests import collection_digest, file_digest
from forebear.artifacts.manifests import read_manifest
from forebear.data.chat import Chat
from forebear.data.records import read_records
from forebear.ground_truth.bank import plan_retrainings
from forebear.ground_truth.files import read_subsets, write_shard
from forebear.ground_truth.retrain import prepare_stage, retrain_missing
from forebear.models.checkpoints import load_model, load_tokenizer
from forebear.models.training import Schedule, build_model, build_tokenizer
from forebear.runtime.devices import device_for

params, files = snakemake.params, snakemake.input
loading = params.loading
data_digest = collection_digest(files.attributed)
subsets = read_subsets(files.subsets, {"data_digest": data_digest})
records = [read_records(file) for file in files.records]
if files.initial:
    tokenizer = load_tokenizer(Path(files.initial).parent, loading["trust_remote_code"])
else:
    tokenizer = build_tokenizer([record for part in records for record in part])
stages = {
    name: prepare_stage(part, tokenizer, loading["max_length"], task, Schedule(**training), Chat(**loading["chat"]))
    for name, part, task, training in zip(
        params.stages, records[params.first_stage :], params.tasks, params.training, strict=True
    )
}


def initial(seed):
    """Where the first attributed stage starts: where the stage before ended, or fresh weights."""
    if files.initial:
        model = load_model(Path(files.initial).parent, trust_remote_code=loading["trust_remote_code"]).requires_grad_(
            True
        )
    else:
        model = build_model(params.model, tokenizer, seed)
    return model.to(device_for(loading["gpus"]))


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
where = (Path(params.bank), params.first_stage, params.accept_other_versions)
keys = retrain_missing(plan, subsets, stages, initial, tokenizer, recipe, *where)
write_shard(snakemake.output.shard, plan, keys, {"study": params.study, "data_digest": data_digest})
