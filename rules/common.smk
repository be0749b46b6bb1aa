# The config, and what jobs are given: memory, threads, GPUs, digests, messages. No rule stands here.
import os

from snakemake.exceptions import WorkflowError

from forebear.config.reading import merged_studies, parse_config, read_yaml
from forebear.artifacts.code_digest import engine_digest
from forebear.errors import ForebearError
from forebear.estimators import ESTIMATORS
from forebear.runtime.memory import ASKED_MB

# Where the files that rules call results/… lie: elsewhere, if another workflow imports this one with a
# prefix. Snakemake itself puts it before inputs, outputs and logs; params and code say this name.
RESULTS = str(workflow.modifier.modify_path("results/")).removesuffix("/")


def located(path):
    """Where a file lies that rules call results/…"""
    return RESULTS + path.removeprefix("results")


try:
    for file in workflow.configfiles:
        read_yaml(file)  # which refuses a key that stands twice
    CONFIG = parse_config(config)
except ForebearError as error:
    raise WorkflowError(str(error)) from None


def config_files():
    """In the order in which Snakemake merges them: its own config.yaml, and those of the command line."""
    given, own = (
        list(map(os.path.relpath, files))
        for files in (workflow.overwrite_configfiles, workflow.configfiles)
    )
    replaced = workflow.config_settings.replace_workflow_config
    return given if replaced else [file for file in own if file not in given] + given


STAGES = sorted({name for study in CONFIG.studies.values() for name in study.stage_names})
BASELINES = [name for name, estimator in ESTIMATORS.items() if estimator.is_baseline]
DERIVED = [name for name, estimator in ESTIMATORS.items() if estimator.base]


wildcard_constraints:
    study="|".join(CONFIG.studies),
    stage="|".join(STAGES),
    dataset="|".join([*STAGES, "queries", "candidates"]),
    point="(" + "|".join(STAGES) + ")(@(" + "|".join(STAGES) + "))?",
    model="|".join(STAGES),
    estimator="[a-z0-9-]+",
    columns="[a-z0-9-]+",
    shard=r"\d+",
    shards=r"\d+",


def with_needs(message, gpus=True):
    """A message that says what the job asks for, so that a dry run lists it."""
    devices = ", {resources.gpu} GPUs" if gpus else ""
    return f"{message} [{{threads}} threads, {{resources.mem_mb}} MB{devices}]"


def study_of(wildcards):
    return CONFIG.studies[wildcards.study]


def from_study(key):
    """An input, params or resources function: the value of a key of the job's study."""
    return lambda wildcards: getattr(study_of(wildcards), key)


def chat_of_study(study):
    """How a study's chats are read, with the template itself: an edit of its file reruns the jobs."""
    try:
        return CONFIG.studies[study].chat.settings
    except ForebearError as error:
        raise WorkflowError(str(error)) from None


def loading_of(study, *further):
    """How the jobs of a study open a model and read its sequences: arguments of `open_point`."""
    described = CONFIG.studies[study]
    keys = ("max_length", "gpus", "trust_remote_code", *further)
    return {**{key: getattr(described, key) for key in keys}, "chat": chat_of_study(study)}


def loading(*further):
    """A params function: `loading_of` the job's study."""
    return lambda wildcards: loading_of(wildcards.study, *further)


def engine(script):
    """Digest of the engine's code that a script uses: an edit there reruns the job."""
    return engine_digest(f"{ENGINE}/{script}.py")


def growing(base):
    """Memory (MB) or run time (minutes) that doubles with every attempt."""
    return lambda wildcards, attempt: base * 2 ** (attempt - 1)


def memory(base):
    """Memory (MB) of a job on a model: as the study multiplies it, and doubled with every attempt."""
    return lambda wildcards, attempt: growing(round(base * study_of(wildcards).memory))(
        wildcards, attempt
    )


def baseline_gpus(wildcards):
    """A baseline that runs no model needs none."""
    return study_of(wildcards).gpus if ESTIMATORS[wildcards.estimator].runs_model else 0


def baseline_memory(wildcards, attempt):
    """Memory (MB) of a baseline, as the study multiplies it only where a model runs."""
    kind = memory if ESTIMATORS[wildcards.estimator].runs_model else growing
    return kind(ASKED_MB["baselines"])(wildcards, attempt)


def threads_of(wildcards):
    """Threads of the jobs that run matrix products over all documents."""
    return study_of(wildcards).threads


def require_writable(folder):
    """Refuse to start where nothing can be written: Snakemake itself would end in a traceback."""
    if os.path.isdir(folder) and not os.access(folder, os.W_OK):
        raise WorkflowError(
            f"{folder}: cannot be written to; make it writable, or run in another folder."
        )
