# Helpers of the other rule files; no rule stands here.
import os
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from forebear.config import parse_config, refuse_duplicate_keys
from forebear.corpus_config import FileCorpus, ProseCorpus, StageFiles
from forebear.digests import engine_digest
from forebear.errors import ForebearError
from forebear.estimators import (
    COLUMNS,
    ESTIMATORS,
    columns_of,
    documents_point,
    inverse_points,
    scoring_passes,
)

try:
    for file in workflow.configfiles:
        refuse_duplicate_keys(file)
    CONFIG = parse_config(config)
except ForebearError as error:
    raise WorkflowError(str(error)) from None

STAGES = sorted({name for study in CONFIG.studies.values() for name in study.stage_names})
BASELINES = [name for name, estimator in ESTIMATORS.items() if estimator.is_baseline]
DERIVED = [name for name, estimator in ESTIMATORS.items() if estimator.base]


wildcard_constraints:
    study="|".join(CONFIG.studies),
    stage="|".join(STAGES),
    dataset="|".join([*STAGES, "queries", "candidates"]),
    point="(" + "|".join(STAGES) + ")(@(" + "|".join(STAGES) + "))?",
    estimator="[a-z0-9-]+",
    columns="[a-z0-9-]+",
    shard=r"\d+",
    shards=r"\d+",


def one_of(studies):
    """A wildcard constraint: these studies and no other, even if there are none."""
    return "|".join(studies) or "(?!)"


# Studies whose passes over documents are one job each, and those where shards share them.
WHOLE = one_of([name for name, study in CONFIG.studies.items() if study.shards == 1])
SHARDED = one_of([name for name, study in CONFIG.studies.items() if study.shards > 1])

# Sharded studies whose gathered scores are the last ones, and those where some are then computed again.
GATHERED = one_of(
    [n for n, s in CONFIG.studies.items() if s.shards > 1 and s.compression.rank is None]
)
GATHERED_FIRST = one_of(
    [n for n, s in CONFIG.studies.items() if s.shards > 1 and s.compression.rank is not None]
)


def with_needs(message, planned=False, gpus=True):
    """A message that says what the job takes, so that a dry run lists it."""
    devices = ", {resources.gpu} GPUs" if gpus else ""
    plan = "; {resources.plan}" if planned else ""
    return f"{message} [{{threads}} threads, {{resources.mem_mb}} MB{devices}{plan}]"


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
    """The file that marks a stage's model complete: trained here, or fetched."""
    folder = "checkpoints" if CONFIG.studies[study].stage(stage).checkpoint else "models"
    return f"results/{study}/{folder}/{stage}/manifest.json"


def published(wildcards):
    """Where the published model of a stage, or the sentence encoder, comes from."""
    study = study_of(wildcards)
    encoder = wildcards.name == "encoder"
    return study.corpus.neighbours.encoder if encoder else study.stage(wildcards.name).checkpoint


def checkpoint_files(wildcards):
    """The files of a checkpoint that is a folder; one from the hub has its revision."""
    path = published(wildcards).path
    return sorted(str(file) for file in path.glob("*") if file.is_file()) if path else []


def previous_stage(study, stage):
    """The stage before one in its chain, or None."""
    names = CONFIG.studies[study].stage_names
    place = names.index(stage)
    return names[place - 1] if place else None


def growing(base):
    """Memory (MB) or run time (minutes) that doubles with every attempt."""
    return lambda wildcards, attempt: base * 2 ** (attempt - 1)


def memory(base, study=None):
    """Memory (MB) of a job on a model: as the study multiplies it, and doubled with every attempt."""
    return lambda wildcards, attempt: growing(
        round(base * CONFIG.studies[study or wildcards.study].memory)
    )(wildcards, attempt)


def baseline_gpus(wildcards):
    """A baseline that runs no model needs none."""
    return study_of(wildcards).gpus if ESTIMATORS[wildcards.estimator].runs_model else 0


def baseline_memory(wildcards, attempt):
    """Memory (MB) of a baseline, as the study multiplies it only where a model runs."""
    kind = memory if ESTIMATORS[wildcards.estimator].runs_model else growing
    return kind(2000)(wildcards, attempt)


@cache
def expected_plan(study, job, memory_mb, stage, records, estimators):
    """How a job is expected to fit into memory, or None.

    It takes seconds of imports to know, so that it is asked in dry runs and for published
    models only: others fit into the default.
    """
    described = CONFIG.studies[study]
    if not workflow.dryrun and not any(s.checkpoint for s in described.stages):
        return None
    from forebear import expected

    folder = Path(f"results/{study}")
    return expected.expected_plan(
        described, folder, job, memory_mb, stage, records, list(estimators)
    )


def planned(job, base, where, study=None, estimators=()):
    """Resources of a job that plans its memory: `mem_mb`, and `plan` for its message.

    `base` is the memory (MB) in a study without more of it; a job that cannot fit asks for
    more. `where` gives the stage at whose model the job runs, and the name of its records.
    """

    def plan(wildcards):
        name = study or wildcards.study
        least = round(base * CONFIG.studies[name].memory)
        return expected_plan(name, job, least, *where(wildcards), tuple(estimators)), least

    def mem_mb(wildcards, attempt):
        expected, least = plan(wildcards)
        on_cpu = expected and not CONFIG.studies[study or wildcards.study].gpus
        return growing(max(least, expected.bytes >> 20) if on_cpu else least)(wildcards, attempt)

    def told(wildcards):
        expected, _ = plan(wildcards)
        return expected.summary if expected else "memory as planned in its log"

    return {"mem_mb": mem_mb, "plan": told}


def at_point(wildcards):
    """Of a curvature point: the stage at whose model it is, and the stage whose data it is about."""
    return model_of(wildcards.point), data_of(wildcards.point)


def threads_of(wildcards):
    """Threads of the jobs that run matrix products over all documents."""
    return study_of(wildcards).threads


def present(path):
    """A user's file as an input, if it is there yet: a dry run needs no data, and a job that misses it says so."""
    return path if path and os.path.exists(path) else []


def corpus_file(wildcards):
    """The file behind a data set; None for embedded corpora."""
    study = study_of(wildcards)
    if isinstance(study.corpus, ProseCorpus):
        return study.corpus.file and str(study.corpus.file)
    if wildcards.dataset in study.stage_names:
        return (
            str(study.corpus.documents[wildcards.dataset])
            if isinstance(study.corpus, StageFiles)
            else None
        )
    if study.candidates:
        return f"results/{wildcards.study}/{study.candidates}/{wildcards.dataset}.jsonl"
    return str(study.corpus.queries) if isinstance(study.corpus, FileCorpus) else None


def corpus_input(wildcards):
    """`corpus_file` as an input: what a rule makes is always one, a user's file if it is there."""
    chosen = (
        study_of(wildcards).candidates and wildcards.dataset not in study_of(wildcards).stage_names
    )
    return corpus_file(wildcards) if chosen else present(corpus_file(wildcards))


def corpus_limit(wildcards):
    """How many lines of a data set's file are read; None for all."""
    corpus = study_of(wildcards).corpus
    return corpus.limit.get(wildcards.dataset) if isinstance(corpus, StageFiles) else None


def embedded_corpus(wildcards):
    """What an embedded corpus is built from; None for files, whose other keys are not of this data set."""
    study = study_of(wildcards)
    if isinstance(study.corpus, StageFiles):
        return None
    return {**study.corpus.model_dump(mode="json"), "seed": study.seed}


def tokenizer_data(wildcards):
    """The first stage's vocabulary comes from all training data of the study; later stages inherit it.

    Queries have no part in it, so that other queries need no other models.
    """
    if previous_stage(wildcards.study, wildcards.stage):
        return []
    return [
        f"results/{wildcards.study}/data/{name}.jsonl" for name in study_of(wildcards).stage_names
    ]


def previous_manifest(wildcards):
    stage = previous_stage(wildcards.study, wildcards.stage)
    return manifest(wildcards.study, stage) if stage else []


def points_of(wildcards):
    study = study_of(wildcards)
    return inverse_points(wildcards.columns, study.stage_names, wildcards.stage)


def chain_of(wildcards):
    """The points of a stage's whole chain, its own last."""
    return inverse_points("multistage-ekfac", study_of(wildcards).stage_names, wildcards.stage)


def stages_from(wildcards):
    """The documents' stage and those after it."""
    return chain_of(wildcards)[::-1]


def link_of(wildcards, point):
    """What the config says of one inverse: its damping, its α, and whether it is multiplied by α.

    The stages after the documents' (the wildcard `stage`) are.
    """
    study, stage = study_of(wildcards), study_of(wildcards).stage(data_of(point))
    place = study.stage_names.index(stage.name)
    at_own_model = data_of(point) == model_of(point)
    return {
        "point": point,
        "damping": stage.damping.model_dump(),
        "alpha": stage.alpha if place > 0 and at_own_model else None,
        "scaled": place > study.stage_names.index(wildcards.stage),
        "seed": study.training_seed,
    }


def columns_file(study, stage, columns):
    """Queries as the documents of a stage meet them; the raw gradients are the same for all stages."""
    return f"results/{study}/queries/" + (
        "gradients.h5" if columns == "gradient" else f"{stage}/{columns}.h5"
    )


def is_compressed(study, columns):
    """Whether a study scores low-rank columns first; raw gradients are sums over tokens as they are."""
    return CONFIG.studies[study].compression.rank is not None and columns != "gradient"


def first_columns_file(study, stage, columns):
    """The columns that all documents are scored with."""
    if is_compressed(study, columns):
        return f"results/{study}/queries/{stage}/compressed/{columns}.h5"
    return columns_file(study, stage, columns)


def first_scores(study, stage, estimator):
    """The scores of all documents, without their suffix: the last ones, if no queries are compressed."""
    folder = "compressed/" if CONFIG.studies[study].compression.rank is not None else ""
    return f"results/{study}/scores/{stage}/{folder}{estimator}"


def documents_point_of(wildcards):
    study = study_of(wildcards)
    return documents_point(wildcards.columns, study.stage_names, wildcards.stage)


def scored_records(study, stage):
    """The documents that are scored for a stage: its own, or candidates in their place."""
    name = "candidates" if CONFIG.studies[study].candidates else stage
    return f"results/{study}/data/{name}.jsonl"


def attributed_records(wildcards):
    """The documents that are scored: one file for each attributed stage."""
    return [scored_records(wildcards.study, stage) for stage in study_of(wildcards).attributed]


def scores_files(wildcards, estimator):
    """An estimator's scores: one file for each attributed stage."""
    folder = f"results/{wildcards.study}/scores"
    return [f"{folder}/{stage}/{estimator}.h5" for stage in study_of(wildcards).attributed]


def scoring_stage(wildcards):
    """The stage at whose model an estimator looks at the documents of a stage."""
    at_last = ESTIMATORS[wildcards.estimator].at_last
    return study_of(wildcards).stage_names[-1] if at_last else wildcards.stage


def base_scores(wildcards):
    """The scores that an estimator's are made from."""
    base = ESTIMATORS[wildcards.estimator].base
    return f"results/{wildcards.study}/scores/{wildcards.stage}/{base}.h5"


def retrained_stages(wildcards):
    """The first attributed stage and all after it."""
    check_retrainable(wildcards)
    names = study_of(wildcards).stage_names
    return names[names.index(study_of(wildcards).attributed[0]) :]


def initial_manifest(wildcards):
    """Where retraining starts: fresh weights, or the stage before the first attributed one."""
    stage = previous_stage(wildcards.study, study_of(wildcards).attributed[0])
    return manifest(wildcards.study, stage) if stage else []


def ground_truth(name):
    """An input function: a file of the ground truth, nothing where a study has no recipe to retrain by."""
    return lambda w: f"results/{w.study}/ground_truth/{name}.h5" if study_of(w).retrainable else []


def check_retrainable(wildcards):
    if not study_of(wildcards).retrainable:
        raise WorkflowError(
            f"{wildcards.study}: models that were published, or never saw the candidates, cannot be retrained without "
            f"some documents, so there is no LDS and no figure of it; ask for results/{wildcards.study}/evaluation.csv or proponents.md."
        )


def evaluation_with_lds(wildcards):
    """The table, for figures that show how estimators predict retraining."""
    check_retrainable(wildcards)
    return f"results/{wildcards.study}/evaluation.csv"


def shard_files(wildcards):
    """What the retraining jobs of a study say they finished."""
    shards = study_of(wildcards).ground_truth.shards
    folder = f"results/{wildcards.study}/ground_truth/shards"
    return [f"{folder}/{k}-of-{shards}.h5" for k in range(1, shards + 1)]


def shard_of(wildcards):
    """[k, n]: a job on documents looks at the k-th of n parts of them; [1, 1] is all."""
    return [int(wildcards.get("shard", 1)), int(wildcards.get("shards", 1))]


def whole_or_shard(study, path, suffix):
    """A file of a pass over documents or, where shards share it, the pattern of theirs."""
    if CONFIG.studies[study].shards == 1:
        return f"{path}.{suffix}"
    return f"{path}/{{shard}}-of-{{shards}}.{suffix}"


def shards_of(path):
    """An input function: the shards of results/{study}/{path}.h5, in the folder of its name."""

    def files(wildcards):
        shards = study_of(wildcards).shards
        folder = f"results/{wildcards.study}/{path.format(**dict(wildcards.items()))}"
        return [f"{folder}/{k}-of-{shards}.h5" for k in range(1, shards + 1)]

    return files


def overhead_files(study, estimator):
    """The artifacts whose seconds are an estimator's overhead."""
    described = ESTIMATORS[estimator]
    if described.base:
        own = [f"results/{study}/self_influence/{s}.h5" for s in CONFIG.studies[study].attributed]
        return overhead_files(study, described.base) + own
    if estimator == "trak":
        return [f"results/{study}/trak/features.h5"]
    # Baselines and the ensemble say themselves what came before their scoring.
    return query_overhead_files(study, described.columns) if described.uses_gradients else []


def query_overhead_files(study, columns):
    """The artifacts that preconditioned queries take: their gradients and every factor."""
    names, attributed = CONFIG.studies[study].stage_names, CONFIG.studies[study].attributed
    files = [f"results/{study}/queries/gradients.h5"]
    for stage in attributed:
        files += [columns_file(study, stage, columns), first_columns_file(study, stage, columns)]
        for point in inverse_points(columns, names, stage):
            kinds = ["covariances", "eigenbasis"]
            if COLUMNS[columns].curvature == "ekfac":
                kinds.append("eigenvalues")
            files += [f"results/{study}/factors/{point}/{kind}.h5" for kind in kinds]
    return list(dict.fromkeys(files))


def all_passes():
    """(study, documents' stage, stage at whose model, estimators served) of the whole config."""
    return [
        (name, attributed, stage, estimators)
        for name, study in CONFIG.studies.items()
        for attributed in study.attributed
        for stage, estimators in scoring_passes(
            study.computed, study.stage_names, attributed
        ).items()
    ]


def study_files(wildcards):
    """All files whose origin a study's provenance tells: from data to figures."""
    study, folder = study_of(wildcards), f"results/{wildcards.study}"
    files = [f"{folder}/data/{name}.jsonl" for name in [*study.stage_names, "queries"]]
    files += [manifest(wildcards.study, stage) for stage in study.stage_names]
    for estimator in study.computed:
        files += overhead_files(wildcards.study, estimator) + scores_files(wildcards, estimator)
        if ESTIMATORS[estimator].uses_gradients:
            files += [f"{first_scores(wildcards.study, s, estimator)}.h5" for s in study.attributed]
    names = ["queries/answers.jsonl", "evaluation.csv", "evaluation.json", "proponents.md"]
    names += [f"{figure}.png" for figure in figures_of(wildcards.study)]
    if study.retrainable:
        names += ["ground_truth/subsets.h5", "ground_truth/bank.h5", "damping.csv"]
    return list(dict.fromkeys(files + [f"{folder}/{name}" for name in names]))


def sized(wildcards):
    """What the figure of cost against size measures."""
    if not study_of(wildcards).cost.sizes:
        raise WorkflowError(
            f"{wildcards.study}: `cost.sizes` is empty, so there is nothing to measure; "
            "studies/validation.yaml has six sizes."
        )
    return study_of(wildcards).cost.model_dump()


def figures_of(study):
    """The figures that a study has."""
    described = CONFIG.studies[study]
    figures = ["spearman", "damping"] if described.retrainable else []
    if {"reference", "reference-check"} <= set(described.computed):
        figures.append("spearman_cg")
    return figures + ["cost_by_size"] * bool(described.cost.sizes)


def compared(study):
    """The estimators that are compared with the converged reference."""
    references = ("reference", "reference-check")
    return [name for name in CONFIG.studies[study].computed if name not in references]


def require_writable(folder):
    """Refuse to start where nothing can be written: Snakemake itself would end in a traceback."""
    if os.path.isdir(folder) and not os.access(folder, os.W_OK):
        raise WorkflowError(
            f"{folder}: cannot be written to; make it writable, or run in another folder."
        )
