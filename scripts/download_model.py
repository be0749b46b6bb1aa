"""Fetch a published checkpoint, or take a folder, and note the digests of its files."""

from forebear.jobs import start

start(snakemake.log[0], snakemake.threads)

from pathlib import Path

from forebear.checkpoints import link_checkpoint, versions
from forebear.datasets import file_digest
from forebear.hub import fetch_snapshot
from forebear.manifests import write_manifest

params = snakemake.params
source = params.checkpoint
folder = Path(source["path"]) if source["path"] else fetch_snapshot(source["hub"], source["revision"])
directory = Path(snakemake.output.manifest).parent
link_checkpoint(folder, directory)
files = {file.name: file_digest(file) for file in sorted(directory.iterdir()) if file.name != "manifest.json"}
write_manifest(
    directory,
    {"name": params.name, "source": {**source, "folder": str(folder)}, "files": files, "versions": versions()},
)
print(f"{params.name}: {len(files)} files from {folder}")
