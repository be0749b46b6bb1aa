# Which files a job reads, and the points, shards and passes that they are named by. No rule stands here.
import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from forebear.config.corpus import FileCorpus, ProseCorpus, StageFiles
from forebear.estimators import COLUMNS, ESTIMATORS
from forebear.workflow.chain_points import documents_point, inverse_points, scoring_passes
from forebear.data.sources import check_found, source_files
from forebear.runtime.receipts import receipt_path

# What is made from no file is made from this one, whose time lies between that of every real file
# and those that recipes.smk gives to files of another recipe.
ORIGIN = f"{RESULTS}/.origin"
ORIGIN_TIME = 10**15  # in ns: January 1970


def with_receipts(**outputs):
    """A cached rule's outputs with their receipts, so that the cache gives both back."""
    receipts = {
        f"{name}_receipt": str(receipt_path(file, "results")) for name, file in outputs.items()
    }
    return {**outputs, **receipts}


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
    if not path:
        return present(ORIGIN)
    files = sorted(str(file) for file in path.glob("*") if file.is_file())
    if not files:
        refuse_missing(f"{path}: there is no such folder, or it is empty; correct `checkpoint`.")
    return list(map(local, files))


def previous_stage(study, stage):
    """The stage before one in its chain, or None."""
    names = CONFIG.studies[study].stage_names
    index = names.index(stage)
    return names[index - 1] if index else None


def checkpoint_before(wildcards):
    """The model of the stage before a published one, which this one is compared with, or merged into."""
    stage = None
    if wildcards.name != "encoder":
        stage = previous_stage(wildcards.study, wildcards.name)
    return manifest(wildcards.study, stage) if stage else []


def refuse_missing(sentence):
    """End a run, but not a dry one, where what somebody brings is not there, before anything is removed.

    No exception of Snakemake's: it would take that as a reason to use what was made before, whatever
    the config says now.
    """
    if workflow.executor_plugin and not (workflow.dryrun or workflow.touch):
        sys.exit(f"error: {sentence}")


def there(path, found):
    """What was found of a user's path, as inputs; a dry run needs no data.

    They lie where the config says: the prefix of a module is for what its rules make. A file that is
    not there yet may be made by a rule of the workflow that imports this one.
    """
    if path and not found and maker_of(str(path)):
        found = [path]
    if path and not found:
        try:
            check_found(Path(path), found)
        except ForebearError as error:
            refuse_missing(error)
    return [local(str(file)) for file in found]


def present(path):
    """A user's file or folder as an input."""
    return there(path, [path] if path and os.path.exists(path) else [])


def brought(study, dataset):
    """What the config says of the documents of a stage, of the queries, or of the candidates' pool; None if nothing."""
    corpus = CONFIG.studies[study].corpus
    if isinstance(corpus, StageFiles) and dataset in CONFIG.studies[study].stage_names:
        return corpus.documents[dataset].described(corpus.limit.get(dataset))
    if isinstance(corpus, FileCorpus) and dataset == "queries":
        return corpus.queries.described()
    if isinstance(corpus, FileCorpus) and dataset == "candidates" and corpus.neighbours:
        return corpus.neighbours.pool.described(corpus.neighbours.limit)
    return None


def from_hub(wildcards):
    """The data set of the hub that a job fetches."""
    source = brought(wildcards.study, wildcards.dataset)
    if not source or not source["hub"]:
        raise WorkflowError(f"{wildcards.study}: {wildcards.dataset} is no data set of the hub.")
    return source


def fetched_file(study, dataset):
    """A data set of the hub, as the file that it is fetched to."""
    return f"results/{study}/fetched/{dataset}.jsonl"


def local_source(study, dataset):
    """What is read of somebody's data: `brought`, with a hub's data set as the file that it was fetched to."""
    source = brought(study, dataset)
    if source and source["hub"]:
        return {"path": located(fetched_file(study, dataset))}
    return source


def source_input(study, dataset):
    """The files behind `local_source`: what a rule makes, and of a user's own those that are there."""
    source = brought(study, dataset)
    if not source:
        return []
    if source["hub"]:
        return fetched_file(study, dataset)
    return there(source["path"], source_files(source["path"]))


def chosen_file(wildcards):
    """The file of a study with candidates that is no stage's documents; None for every other."""
    study = study_of(wildcards)
    if not study.candidates or wildcards.dataset in study.stage_names:
        return None
    return f"results/{wildcards.study}/{study.candidates}/{wildcards.dataset}.jsonl"


def corpus_source(wildcards):
    """Where a data set is read from; None for embedded corpora."""
    chosen = chosen_file(wildcards)
    return {"path": located(chosen)} if chosen else local_source(wildcards.study, wildcards.dataset)


def corpus_input(wildcards):
    """The files behind a data set."""
    corpus = study_of(wildcards).corpus
    if isinstance(corpus, ProseCorpus) and corpus.file:
        return there(corpus.file, source_files(corpus.file))
    if embedded_corpus(wildcards):
        return present(ORIGIN)
    return chosen_file(wildcards) or source_input(wildcards.study, wildcards.dataset)


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
    index = study.stage_names.index(stage.name)
    at_own_model = data_of(point) == model_of(point)
    return {
        "point": point,
        "damping": stage.damping.model_dump(),
        "alpha": stage.alpha if index > 0 and at_own_model else None,
        "scaled": index > study.stage_names.index(wildcards.stage),
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


def scores_file(study, stage, estimator, first=False):
    """The file that has an estimator's scores of a stage's documents: that of its pass, or its own.

    Where queries are compressed, a pass of all documents comes `first`, and the outermost are scored again.
    """
    described, config = ESTIMATORS[estimator], CONFIG.studies[study]
    if not described.uses_gradients:
        return f"results/{study}/scores/{stage}/{estimator}.h5"
    model = config.stage_names[-1] if described.at_last else stage
    rescored = "" if first or config.compression.rank is None else "rescored_"
    return f"results/{study}/scores/{stage}/{rescored}at_{model}.h5"


def scores_files(study, estimator):
    """An estimator's scores: one file for each attributed stage."""
    return [scores_file(study, s, estimator) for s in CONFIG.studies[study].attributed]


def served(wildcards):
    """The estimators that the pass over a stage's documents at a model serves."""
    study = study_of(wildcards)
    passes = scoring_passes(study.computed, study.stage_names, wildcards.stage)
    if wildcards.model not in passes:
        raise WorkflowError(
            f"{wildcards.study}: no estimator looks at the documents of {wildcards.stage} at the {wildcards.model} model."
        )
    return passes[wildcards.model]


def baseline_manifest(wildcards):
    """The model whose hidden states a baseline looks at, if it runs one."""
    if not ESTIMATORS[wildcards.estimator].runs_model:
        return []
    return manifest(wildcards.study, study_of(wildcards).stage_names[-1])


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
    """[k, n]: a job on documents looks at the k-th of n parts of them."""
    return [int(wildcards.shard), int(wildcards.shards)]


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


def overheads(study, estimators):
    """Params: estimator → where its `overhead_files` lie."""
    return {name: list(map(located, overhead_files(study, name))) for name in estimators}


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


def study_files(wildcards):
    """All files whose origin a study's provenance tells: from data to figures."""
    study, folder = study_of(wildcards), f"results/{wildcards.study}"
    files = [f"{folder}/data/{name}.jsonl" for name in [*study.stage_names, "queries"]]
    files += [manifest(wildcards.study, stage) for stage in study.stage_names]
    for estimator in study.computed:
        files += overhead_files(wildcards.study, estimator) + scores_files(
            wildcards.study, estimator
        )
        files += [scores_file(wildcards.study, s, estimator, first=True) for s in study.attributed]
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
