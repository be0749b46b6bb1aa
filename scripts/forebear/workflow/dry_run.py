"""What a study's jobs are expected to take, before any has run: `python -m forebear.workflow.dry_run [CONFIG …]`.

Plans are made by the functions that the jobs call, from the config and from files as far as
they are there; a job plans again, with what it finds.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedModel

from forebear.config.corpus import Checkpoint, FileCorpus
from forebear.config.reading import read_config
from forebear.config.study import Study
from forebear.data.records import full_text
from forebear.data.sources import Source, source_files, source_rows
from forebear.errors import ForebearError
from forebear.estimators import COLUMNS, ESTIMATORS
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.models.adapters import is_adapter
from forebear.models.checkpoints import model_without_weights
from forebear.models.inspection import ADAPTER
from forebear.models.training import build_model, build_tokenizer
from forebear.planning.budget import Budget, budget_of, shape_of
from forebear.planning.plan import Plan, plan_covariances, plan_eigenvalues, plan_query_gradients
from forebear.planning.score_plan import plan_scores
from forebear.runtime.memory import ASKED_MB, memory_for
from forebear.runtime.progress import progress
from forebear.workflow.chain_points import columns_of, inverse_points, scoring_passes

WORDS = 4000  # assumed of a vocabulary that is made from documents which are not there yet
QUERIES = 100  # assumed where neither the config nor a file says how many there are
RELATIONS = 4  # questions about a country
MODEL_BASELINES = ("embedding", "cka")  # which run the study's own model


@dataclass(frozen=True)
class ExpectedJob:
    """A job that runs a model."""

    title: str  # as in its message
    kind: str  # as `memory.ASKED_MB` names it
    stage: str  # at whose model it runs
    records: str = ""  # the name of what it runs over, as in the folder `data`; of jobs that plan what they hold
    estimators: tuple[str, ...] = ()  # that a scoring job serves
    compressed: bool = False  # whether it scores compressed queries


def expected_jobs(study: Study) -> list[ExpectedJob]:
    """The jobs of a study on the models of its stages."""
    names, last = study.stage_names, study.stage_names[-1]
    passes = {stage: scoring_passes(study.computed, names, stage) for stage in study.attributed}
    read = [(stage, c) for stage, served in passes.items() for e in served.values() for c in columns_of(e)]
    if study.retrainable:  # the sweep of dampings
        read.append((study.attributed[0], "multistage-ekfac"))
    bases, eigenvalues = (
        {p for stage, c in read if COLUMNS[c].curvature in kinds for p in inverse_points(c, names, stage)}
        for kinds in (("ekfac", "kfac"), ("ekfac",))
    )
    jobs = [ExpectedJob(f"train the stage {s.name}", "training", s.name) for s in study.stages if s.training]
    jobs.append(ExpectedJob("let the last model answer the queries", "answers", last))
    for model, data in product(names, names):
        point = data if data == model else f"{data}@{model}"
        for kind, points in (("covariances", bases), ("eigenvalues", eigenvalues)):
            if point in points:
                jobs.append(ExpectedJob(f"{kind} of {point}", kind, model, data))
    if read:
        jobs.append(ExpectedJob("gradients of the queries at the last model", "query gradients", last, "queries"))
    for attributed, served in passes.items():
        records = "candidates" if study.candidates else attributed
        if any(ESTIMATORS[name].base for name in study.computed):
            title = f"self-influence of the documents of {attributed}"
            jobs.append(ExpectedJob(title, "self-influence", attributed, records))
        for name in columns_of([name for estimators in served.values() for name in estimators]):
            if COLUMNS[name].solver:
                jobs.append(ExpectedJob(f"solve for {name} of {attributed}", "solutions", last))
        for stage, estimators in served.items():
            title = f"score the documents of {attributed} at the {stage} model"
            compressed = study.compression.rank is not None
            jobs.append(ExpectedJob(title, "scores", stage, records, tuple(estimators), compressed))
            if compressed:
                title = f"score the outermost documents of {attributed} at the {stage} model again, with whole queries"
                jobs.append(ExpectedJob(title, "scores", stage, records, tuple(estimators)))
        for name in study.computed:
            if name in MODEL_BASELINES:
                jobs.append(ExpectedJob(f"{attributed} scored by the baseline {name}", "baselines", last))
    return jobs


def expected_plans(study: Study, folder: Path) -> Iterator[tuple[ExpectedJob, Plan | None]]:
    """Every job with its plan: within what it asks for, or on GPUs whatever it takes; None where its model is not here.

    The plan of a job that makes none has the model and the process alone, and no partitions.

    Args:
        folder: of the study's results.

    Raises:
        ForebearError: a model, or data that is there, cannot be used.
    """
    described = cache(lambda stage: _model_and_blocks(study, folder, stage))
    lengths = cache(lambda records: _lengths(folder / "data" / f"{records}.jsonl", study.max_length))
    total = number_of_queries(study, folder) or QUERIES
    for job in expected_jobs(study):
        if described(job.stage) is None:
            yield job, None
            continue
        model, blocks = described(job.stage)
        shape = shape_of(model, blocks, lengths(job.records))
        budget = budget_of(shape.model_bytes, asked_mb(study, job.kind), 0)
        if study.gpus:
            budget = Budget(1 << 62, shape.model_bytes, study.gpus)
        options = (shape, budget, study.batch_tokens)
        match job.kind:
            case "covariances":
                plan = plan_covariances(*options, study.label_samples, not study.gpus)
            case "eigenvalues":
                plan = plan_eigenvalues(*options, study.label_samples, not study.gpus)
            case "self-influence":
                plan = plan_eigenvalues(*options, double=False)
            case "query gradients":
                plan = plan_query_gradients(*options)
            case "scores":
                plan = plan_scores(*options, *_queries(study, job, blocks, total, max(lengths("queries"))))
            case _:
                plan = Plan(job.kind, (), study.batch_tokens, 0, 0, budget, 0.0)
        yield job, plan


def asked_mb(study: Study, kind: str) -> int:
    """What a job asks for at its first attempt."""
    return round(ASKED_MB[kind] * study.memory)


def _queries(
    study: Study, job: ExpectedJob, blocks: list[Block], total: int, longest: int
) -> tuple[dict[str, int], list[tuple[str, frozenset[str]]], dict[str, int | None]]:
    """What `plan_scores` is told of a job's queries: their numbers, which blocks of them are read, and their ranks."""
    read = [ESTIMATORS[name] for name in job.estimators]
    queries = {e.columns: min(total, study.solvers.queries) if COLUMNS[e.columns].solver else total for e in read}
    reads = [(e.columns, frozenset(block.name for block in blocks if block.kind in e.kinds)) for e in read]
    ranks = dict.fromkeys(queries, study.compression.rank if job.compressed else None)
    return queries, reads, {**ranks, "gradient": longest}


def _model_and_blocks(study: Study, folder: Path, stage: str) -> tuple[PreTrainedModel, list[Block]] | None:
    model = model_of(study, folder, stage)
    if model is None:
        return None
    model = model.to(getattr(torch, study.precision))
    return model, tracked_blocks(model, study.split_heads)


def model_of(study: Study, folder: Path, name: str) -> PreTrainedModel | None:
    """A stage's model without weights: as it is, or as that which the stage or an adapter starts from; None if it is not here.

    Raises:
        ForebearError: it cannot be loaded, or built.
    """
    stage = study.stage(name)
    known = [folder / kind / name / "config.json" for kind in ("models", "checkpoints")]
    if stage.checkpoint and stage.checkpoint.path:
        known.append(stage.checkpoint.path / "config.json")
    elif stage.checkpoint and stage.checkpoint.hub:
        cached = try_to_load_from_cache(stage.checkpoint.hub, "config.json", revision=stage.checkpoint.revision)
        known += [Path(cached)] if isinstance(cached, str) else []
    for path in known:
        if path.is_file():
            return model_without_weights(path.parent, study.trust_remote_code)
    if stage.checkpoint and not _holds_adapter(stage.checkpoint):
        if stage.checkpoint.path:
            raise ForebearError(f"{stage.checkpoint.path}: there is no config.json of a model; correct `checkpoint`.")
        return None
    index = study.stage_names.index(name)
    if index:
        return model_of(study, folder, study.stage_names[index - 1])
    if not study.model:
        return None
    words = build_tokenizer([{"text": " ".join(f"w{k}" for k in range(WORDS))}])
    with torch.device("meta"):
        return build_model(study.model, words, study.training_seed)


def _holds_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint without a config is an adapter, as far as its files are here."""
    if checkpoint.path:
        return is_adapter(checkpoint.path)
    return isinstance(
        checkpoint.hub and try_to_load_from_cache(checkpoint.hub, ADAPTER, revision=checkpoint.revision), str
    )


def _lengths(path: Path, max_length: int) -> list[int]:
    """Words of the records, in place of tokens; of one record of the greatest length if there are none yet."""
    if not path.is_file():
        return [max_length]
    with path.open(encoding="utf-8") as handle:
        return [min(max_length, 2 + len(full_text(json.loads(line)).split())) for line in handle] or [max_length]


def number_of_queries(study: Study, folder: Path) -> int | None:
    """As many as are prepared, or as the config says; None if the file that it names is not there yet."""
    corpus, path = study.corpus, folder / "data/queries.jsonl"
    if path.is_file():
        with path.open("rb") as handle:
            return sum(1 for _ in handle)
    if isinstance(corpus, FileCorpus):
        brought = corpus.queries
        there = brought.path and source_files(brought.path)
        return sum(1 for _ in source_rows(Source(**brought.described()))) if there else None
    for key, questions in (("query_passages", 1), ("query_countries", RELATIONS), ("queries", 1)):
        if isinstance(count := getattr(corpus, key, None), int):
            return questions * count
    return None


def table(name: str, study: Study, folder: Path) -> str:
    """The jobs of a study with memory and passes, and what to do where they ask for too little, or are not known."""
    found = list(progress(expected_plans(study, folder), name, "job", len(expected_jobs(study))))
    width = max(len(job.title) for job, _ in found)
    lines = [f"{name:{width}}   asks for       takes  partitions  passes"]
    for job, plan in found:
        line = f"{job.title:{width}}  {asked_mb(study, job.kind):6} MB"
        if plan:
            takes = f"{'' if plan.partitions else '>= '}{plan.bytes / 2**30:.1f} GB"
            line += f"  {takes:>10}"
        if plan and plan.partitions:
            line += f"  {len(plan.partitions):10}  {plan.passes:6.1f}{'  factored' * bool(plan.factored)}"
        lines.append(line if plan else f"{line}   not known")
    if study.gpus:
        lines.append(f"What they take is on {study.gpus} GPUs, and what they ask for is main memory.")
    wanted = [memory_for(job.kind, plan.bytes) for job, plan in found if plan and plan.excess]
    if wanted:
        lines.append(f"Some need more than they ask for: set `memory: {max(wanted):g}` or more in the study {name}.")
    away = [stage.name for stage in study.stages if stage.checkpoint and model_of(study, folder, stage.name) is None]
    if away:
        files = " ".join(str(folder / "checkpoints" / stage / "manifest.json") for stage in away)
        lines.append(f"Not known before models are here; `snakemake --cores 1 {files}` fetches them.")
    if number_of_queries(study, folder) is None:
        lines.append(f"{QUERIES} queries are assumed, since theirs are not here yet.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("python -m forebear.workflow.dry_run", description=__doc__.partition(":")[0])
    parser.add_argument("config", nargs="*", default=["config.yaml"], help="each adds to those before it (config.yaml)")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the studies' results (results)"
    )
    arguments = parser.parse_args()
    try:
        config = read_config(*arguments.config)
        print("\n\n".join(table(name, study, arguments.results / name) for name, study in config.studies.items()))
    except ForebearError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
