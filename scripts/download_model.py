"""Fetch a published checkpoint, or take a package's or a folder, and note the digests of its files."""

from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)

from pathlib import Path

from forebear.checkpoints import link_checkpoint, versions
from forebear.datasets import file_digest
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
    origin = Path(source["path"]) if source["path"] else fetch_snapshot(source["hub"], source["revision"])
    link_checkpoint(origin, directory)
files = {file.name: file_digest(file) for file in sorted(directory.iterdir()) if file.name != "manifest.json"}
write_manifest(
    directory,
    {"name": params.name, "source": {**source, "origin": str(origin)}, "files": files, "versions": versions()},
)
print(f"{params.name}: {len(files)} files from {origin}")
