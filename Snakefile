import os
import sys

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.20")

# This workflow's own engine, whichever one is installed: here, and in its jobs. It lies beside this
# file, also where another workflow imports it as a module.
ENGINE = os.path.join(workflow.current_basedir.get_path_or_uri(secret_free=False), "scripts")
if not os.path.isdir(ENGINE):
    raise WorkflowError(
        f"{ENGINE}: there is no such folder; forebear is imported from a clone of its repository, "
        "whose engine lies beside its Snakefile, so name the path of the Snakefile in a clone."
    )
sys.path.insert(0, ENGINE)
os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [ENGINE, os.getenv("PYTHONPATH")])))


configfile: "config.yaml"


report: "rules/captions/workflow.rst"


include: "rules/common.smk"
include: "rules/files.smk"


# The first rule, so that it is what is made by default, also of a workflow that imports this one
# and has no rule before.
rule all:
    input:
        [f"results/figures/{figure}.png" for figure in figures_of(CONFIG.study)],
        f"results/{CONFIG.study}/evaluation.csv",
        f"results/{CONFIG.study}/proponents.md",
        f"results/{CONFIG.study}/pages/proponents.html",
        f"results/{CONFIG.study}/provenance.json",
        f"results/{CONFIG.study}/config.yaml",


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
    require_writable(RESULTS)
    for sentence in merged_studies(config_files()):
        print(sentence, file=sys.stderr)


# After all rules, whose params it completes.
include: "rules/recipes.smk"
