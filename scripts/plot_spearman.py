"""The figure: how well each estimator predicts retraining, against what it costs."""

from forebear.jobs import start

start(snakemake)

import json
from pathlib import Path

import pandas as pd

from forebear.plots import plot_spearman, save_figure
from forebear.writing import atomic_path

summary = json.loads(Path(snakemake.input.summary).read_text(encoding="utf-8"))
ceiling = tuple(summary["noise_ceiling"][key] for key in ("value", "low", "high"))
figure = plot_spearman(pd.read_csv(snakemake.input.table), ceiling, snakemake.params.study)
with atomic_path(snakemake.output.figure) as path:
    save_figure(figure, path)
