"""Train one stage of the chain: from fresh weights, or from where the stage before ended."""

from forebear.devices import lease_devices
from forebear.jobs import measured, start

start(snakemake)
lease_devices(snakemake.params.gpus)

from dataclasses import asdict
from pathlib import Path

from forebear.checkpoints import check_context, device_for, load_model, load_tokenizer, save_checkpoint
from forebear.heads import classes_by_label, with_head
from forebear.records import classes_of, file_digest, read_records
from forebear.sequences import encode
from forebear.training import Schedule, build_model, build_tokenizer, train

params = snakemake.params
if snakemake.input.previous:
    previous = Path(snakemake.input.previous).parent
    tokenizer = load_tokenizer(previous, params.trust_remote_code)
    model = load_model(previous, trust_remote_code=params.trust_remote_code).requires_grad_(True)
else:
    tokenizer = build_tokenizer([record for file in snakemake.input.vocabulary for record in read_records(file)])
    model = build_model(params.model, tokenizer, params.seed)

check_context(model, params.max_length)
records = read_records(snakemake.input.records)
model = with_head(model, params.task, classes_of(records), params.seed)
examples = encode(records, tokenizer, params.max_length, classes=classes_by_label(model))
with measured() as cost:
    model, record = train(
        model.to(device_for(params.gpus)),
        examples,
        Schedule(**params.training),
        (params.seed, params.place),
        description=params.stage,
    )
save_checkpoint(
    Path(snakemake.output.manifest).parent,
    model,
    tokenizer,
    stage=params.stage,
    seed=params.seed,
    data_digest=file_digest(snakemake.input.records),
    training=asdict(record),
    cost=cost,
)
print(f"loss {record.loss:.3f} nats a sequence, {record.loss_untrained:.3f} before training")
