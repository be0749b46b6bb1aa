"""Train one stage of the chain: from fresh weights, or from where the stage before ended."""

from forebear.runtime.job import measured, start

start(snakemake)

from dataclasses import asdict
from pathlib import Path

from forebear.artifacts.digests import file_digest
from forebear.data.chat import Chat
from forebear.data.records import Records, classes_of
from forebear.data.token_files import open_sequences
from forebear.models.causality import check_causality
from forebear.models.checkpoints import check_context, load_model, load_tokenizer, save_checkpoint, warn_of_size
from forebear.models.heads import classes_by_label, with_head
from forebear.models.training import Schedule, build_model, build_tokenizer, train
from forebear.runtime.devices import device_for

params = snakemake.params
loading = params.loading
if snakemake.input.previous:
    warn_of_size("training", snakemake.input.previous, snakemake.resources.mem_mb, loading)
    previous = Path(snakemake.input.previous).parent
    tokenizer = load_tokenizer(previous, loading["trust_remote_code"])
    model = load_model(previous, trust_remote_code=loading["trust_remote_code"]).requires_grad_(True)
    check_causality(model, loading["max_length"])
else:
    tokenizer = build_tokenizer(record for file in snakemake.input.vocabulary for record in Records(file))
    model = build_model(params.model, tokenizer, params.seed)

check_context(model, loading["max_length"])
records = snakemake.input.records
model = with_head(model, params.task, classes_of(Records(records)), params.seed)
options = {"classes": classes_by_label(model), "chat": Chat(**loading["chat"])}
examples = open_sequences(records, tokenizer, loading["max_length"], **options)
with measured() as cost:
    model, record = train(
        model.to(device_for(loading["gpus"])),
        examples,
        Schedule(**params.training),
        (params.seed, params.stage_index),
        description=params.stage,
    )
save_checkpoint(
    Path(snakemake.output.manifest).parent,
    model,
    tokenizer,
    stage=params.stage,
    seed=params.seed,
    data_digest=file_digest(records),
    training=asdict(record),
    cost=cost,
)
print(f"loss {record.loss:.3f} nats a sequence, {record.loss_untrained:.3f} before training")
