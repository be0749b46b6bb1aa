# Helpers of the other rule files; no rule stands here.
from itertools import product

from snakemake.exceptions import WorkflowError

from forebear.config import FileCorpus, parse_config
from forebear.digests import engine_digest
from forebear.errors import ForebearError
from forebear.estimators import COLUMNS, ESTIMATORS, columns_of, gradient_estimators, inverse_points

try:
    CONFIG = parse_config(config)
except ForebearError as error:
    raise WorkflowError(str(error)) from None

STAGES = sorted({name for study in CONFIG.studies.values() for name in study.stage_names})
BASELINES = [name for name, estimator in ESTIMATORS.items() if not estimator.uses_gradients]


wildcard_constraints:
    study="|".join(CONFIG.studies),
    stage="|".join(STAGES),
    dataset="|".join([*STAGES, "queries"]),
    point="(" + "|".join(STAGES) + ")(@(" + "|".join(STAGES) + "))?",
    estimator="[a-z0-9-]+",
    columns="[a-z0-9-]+",
    shard=r"\d+",
    shards=r"\d+",


def study_of(wildcards):
    return CONFIG.studies[wildcards.study]


def from_study(key):
    """An input, params or resources function: the value of a key of the job's study."""
    return lambda wildcards: getattr(study_of(wildcards), key)


def engine(script):
    """Digest of the engine's code that a script uses: an edit there reruns the job."""
    return engine_digest(f"{workflow.basedir}/scripts/{script}.py")


def data_of(point):
    """The stage whose data a curvature point is about: pretraining@finetuning → pretraining."""
    return point.partition("@")[0]


def model_of(point):
    """The stage at whose model a curvature point is taken: pretraining@finetuning → finetuning."""
    return point.rpartition("@")[2]


def manifest(study, stage):
    return f"results/{study}/models/{stage}/manifest.json"


def previous_stage(study, stage):
    """The stage before one in its chain, or None."""
    names = CONFIG.studies[study].stage_names
    place = names.index(stage)
    return names[place - 1] if place else None


def mem_mb(base):
    """Memory that doubles with every attempt."""
    return lambda wildcards, attempt: base * 2 ** (attempt - 1)


def threads_of(wildcards):
    """Threads of the jobs that run matrix products over all documents."""
    return study_of(wildcards).threads
