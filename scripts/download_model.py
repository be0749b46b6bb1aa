"""Fetch a published model, look through it, and lay it down as the checkpoint of its stage."""

from forebear.runtime.job import start

start(snakemake)

from pathlib import Path

from forebear.artifacts.manifests import read_manifest, write_manifest
from forebear.gradients.lineage import check_lineage, describe_stage
from forebear.models.adapters import is_adapter, merge_adapter
from forebear.models.checkpoints import link_checkpoint, versions
from forebear.models.gguf import convert_gguf, find_gguf
from forebear.models.hub import fetch_snapshot

params = snakemake.params
source, trusted = params.checkpoint, params.trust_remote_code
directory = Path(snakemake.output.manifest).parent
previous = Path(snakemake.input.previous).parent if snakemake.input.previous else None
facts = {}
if source["package"]:
    origin = find_gguf(source["package"], source["revision"])
    convert_gguf(origin, directory)
else:
    origin = Path(source["path"]) if source["path"] else fetch_snapshot(source["hub"], source["revision"], trusted)
    if is_adapter(origin):
        before = read_manifest(snakemake.input.previous) if previous else {}
        facts = merge_adapter(origin, previous, directory, before, source["base"], trusted)
    else:
        link_checkpoint(origin, directory, trusted, params.encoder)
if not params.encoder:
    facts["tracked_share"] = describe_stage(params.name, directory, trusted)
    if previous:
        check_lineage(params.name, directory, previous, trusted)
source = {**source, "origin": str(origin)}
write_manifest(directory, {"name": params.name, "source": source, **facts, "versions": versions()})
print(f"{params.name}: from {origin}")
