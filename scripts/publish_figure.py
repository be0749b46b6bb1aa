"""Copy a figure of the study that the config names to where all figures are looked for."""

from forebear.runtime.job import start

start(snakemake)

import shutil

from forebear.runtime.atomic import atomic_path

with atomic_path(snakemake.output.figure) as path:
    shutil.copyfile(snakemake.input.figure, path)
