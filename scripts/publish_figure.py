"""Copy a figure of the study that the config names to where all figures are looked for."""

from forebear.jobs import start

start(snakemake)

import shutil

from forebear.writing import atomic_path

with atomic_path(snakemake.output.figure) as path:
    shutil.copyfile(snakemake.input.figure, path)
