"""Fetch a published checkpoint, or take a package's or a folder, and note the digests of its files."""

from forebear.jobs import start

start(snakemake)

from pathlib import Path

from forebear.checkpoints import link_checkpoint, versions
from forebear.hub import fetch_snapshot
from forebear.manifests import write_manifest
from forebear.packages import convert_gguf, find_gguf

params = snakemake.params
source = params.checkpoint
directory = Path(snakemake.output.manifest).parent
if source["package"]:
    origin = find_gguf(source["package"], source["revision"])
    convert_gguf(origin, directory)
else:
    trusted = params.trust_remote_code
    origin = Path(source["path"]) if source["path"] else fetch_snapshot(source["hub"], source["revision"], trusted)
    link_checkpoint(origin, directory, trusted)
source = {**source, "origin": str(origin)}
write_manifest(directory, {"name": params.name, "source": source, "versions": versions()})
print(f"{params.name}: from {origin}")
