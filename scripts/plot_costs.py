"""The figure: what fitting and scoring cost against the size of the model."""

from forebear.jobs import start

start(snakemake)

import json
from pathlib import Path

import pandas as pd

from forebear.cost_plot import plot_costs
from forebear.plots import save_figure
from forebear.writing import atomic_path

summary = json.loads(Path(snakemake.input.summary).read_text(encoding="utf-8"))
table, growth = pd.read_csv(snakemake.input.table), pd.DataFrame(summary["growth"])
with atomic_path(snakemake.output.figure) as path:
    save_figure(plot_costs(table, growth, summary, snakemake.params.study), path)
