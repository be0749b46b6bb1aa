"""The figure: what fitting and scoring cost against the size of the model."""

from forebear.runtime.job import start

start(snakemake)

import json
from pathlib import Path

import pandas as pd

from forebear.figures.costs import plot_costs
from forebear.figures.style import save_figure
from forebear.runtime.atomic import atomic_path

summary = json.loads(Path(snakemake.input.summary).read_text(encoding="utf-8"))
table, growth = pd.read_csv(snakemake.input.table), pd.DataFrame(summary["growth"])
with atomic_path(snakemake.output.figure) as path:
    save_figure(plot_costs(table, growth, summary, snakemake.params.study), path)
