import os
import sys

from snakemake.utils import min_version

min_version("9.20")

# This workflow's own engine, whichever one is installed: here, and in its jobs.
ENGINE = f"{workflow.basedir}/scripts"
sys.path.insert(0, ENGINE)
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [ENGINE, os.getenv("PYTHONPATH")])))


configfile: "config.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/files.smk"
include: "rules/data.smk"
include: "rules/models.smk"
include: "rules/factors.smk"
include: "rules/queries.smk"
include: "rules/scores.smk"
include: "rules/other_estimators.smk"
include: "rules/ground_truth.smk"
include: "rules/evaluation.smk"
include: "rules/figures.smk"
include: "rules/report.smk"


onstart:
    require_writable("results")
    for sentence in merged_studies(config_files()):
        print(sentence, file=sys.stderr)


rule all:
    default_target: True
    input:
        [f"results/figures/{figure}.png" for figure in figures_of(CONFIG.study)],
        f"results/{CONFIG.study}/evaluation.csv",
        f"results/{CONFIG.study}/proponents.md",
        f"results/{CONFIG.study}/pages/proponents.html",
        f"results/{CONFIG.study}/provenance.json",
        f"results/{CONFIG.study}/config.yaml",


# After all rules, whose params it completes.
include: "rules/recipes.smk"
