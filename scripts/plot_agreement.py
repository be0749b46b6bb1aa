"""The figure: agreement of each estimator with the converged reference, against time."""

from forebear.runtime.job import start

start(snakemake)

import json
from pathlib import Path

import pandas as pd

from forebear.figures.agreement import plot_agreement
from forebear.figures.style import save_figure
from forebear.runtime.atomic import atomic_path

summary = json.loads(Path(snakemake.input.summary).read_text(encoding="utf-8"))
check = summary["agreement_of_two_runs"]["spearman"]
title = f"{snakemake.params.study}: {summary['queries']} queries × {summary['documents']} documents"
figure = plot_agreement(pd.read_csv(snakemake.input.table), check, summary["reference_seconds"], title)
with atomic_path(snakemake.output.figure) as path:
    save_figure(figure, path)
