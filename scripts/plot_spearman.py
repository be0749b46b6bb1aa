"""The figure: how well each estimator predicts retraining, against what it costs."""

from forebear.runtime.job import start

start(snakemake)

import json
from pathlib import Path

import pandas as pd

from forebear.figures.spearman import plot_spearman
from forebear.figures.style import save_figure
from forebear.runtime.atomic import atomic_path

summary = json.loads(Path(snakemake.input.summary).read_text(encoding="utf-8"))
ceiling = tuple(summary["noise_ceiling"][key] for key in ("value", "low", "high"))
figure = plot_spearman(pd.read_csv(snakemake.input.table), ceiling, snakemake.params.study)
with atomic_path(snakemake.output.figure) as path:
    save_figure(figure, path)
