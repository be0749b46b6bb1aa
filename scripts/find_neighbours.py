"""The documents of a pool that are nearest to each query, which every ranker sees."""

from forebear.runtime.job import start

start(snakemake)

from pathlib import Path

from forebear.artifacts.manifests import read_manifest
from forebear.data.neighbours import with_neighbours
from forebear.data.records import full_text, read_records, write_records
from forebear.data.sources import Source
from forebear.data.text_rankers import mean_token_states
from forebear.models.checkpoints import load_encoder, load_tokenizer
from forebear.runtime.atomic import atomic_path
from forebear.runtime.devices import device_for

params, files = snakemake.params, snakemake.input
read_manifest(files.encoder)
directory = Path(files.encoder).parent
model = load_encoder(directory, params.trust_remote_code).to(device_for(params.gpus))
tokenizer = load_tokenizer(directory, params.trust_remote_code)
queries, pool = (read_records(Source(**source)) for source in (params.queries, params.pool))
vectors = [mean_token_states(model, tokenizer, [full_text(r) for r in records]) for records in (queries, pool)]
found = with_neighbours(queries, pool, *vectors, params.nearest)
for file, records in zip((snakemake.output.queries, snakemake.output.candidates), found, strict=True):
    with atomic_path(file) as path:
        write_records(path, records)
print(f"{len(found[0])} queries, {len(found[1])} of {len(pool)} documents are candidates")
