"""The proponents and the evaluation as pages for the report."""

from forebear.runtime.job import start

start(snakemake)

import json
from pathlib import Path

import pandas as pd

from forebear.gradients.tracked import tracked_warnings
from forebear.report.html import evaluation_page, markdown_page
from forebear.runtime.atomic import atomic_path

proponents = markdown_page(Path(snakemake.input.proponents).read_text(encoding="utf-8"))
summary = json.loads(Path(snakemake.input.summary).read_text(encoding="utf-8"))
warnings = tracked_warnings(summary["tracked_share"])
evaluation = evaluation_page(pd.read_csv(snakemake.input.table), snakemake.params.study, warnings)
for content, output in ((proponents, snakemake.output.proponents), (evaluation, snakemake.output.evaluation)):
    with atomic_path(output) as path:
        path.write_text(content, encoding="utf-8")
