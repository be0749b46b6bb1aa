"""What a job is expected to take before anything has run: from the config, and from files as far as they are there.

This tells a dry run about memory and passes; the job itself plans again, with what it finds.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from forebear.config.corpus import Checkpoint, FileCorpus
from forebear.config.study import Study
from forebear.data.records import full_text
from forebear.data.sources import Source, source_rows
from forebear.errors import ForebearError
from forebear.estimators import COLUMNS, ESTIMATORS
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.models.adapters import is_adapter
from forebear.models.inspection import ADAPTER
from forebear.planning.budget import Budget, budget_of, shape_of
from forebear.planning.plan import Plan, plan_covariances, plan_eigenvalues, plan_query_gradients
from forebear.planning.score_plan import plan_scores

WORDS = 4000  # assumed of a vocabulary that is made from documents which are not there yet
QUERIES = 100  # assumed where neither the config nor a file says how many there are
RELATIONS = 4  # questions about a country

Job = Literal["covariances", "eigenvalues", "query gradients", "scores", "rescoring"]


def expected_plan(
    study: Study,
    folder: Path,
    job: Job,
    memory_mb: float,
    stage: str,
    records: str,
    estimators: Sequence[str] = (),
) -> Plan | None:
    """The plan of a job within `memory_mb`, or on GPUs whatever it takes; None where the model's shape is not known yet.

    Args:
        folder: of the study's results.
        stage: at whose model the job looks at its documents.
        records: the name of these, as in the folder `data`.
        estimators: those that a scoring job serves.
    """
    described = _model_and_blocks(study, folder, stage)
    if described is None:
        return None
    model, blocks = described
    shape = shape_of(model, blocks, _lengths(folder / "data" / f"{records}.jsonl", study.max_length))
    budget = Budget(1 << 62, shape.model_bytes) if study.gpus else budget_of(shape.model_bytes, memory_mb, 0)
    if job == "covariances":
        return plan_covariances(shape, budget, study.batch_tokens, study.label_samples, not study.gpus)
    if job == "eigenvalues":
        return plan_eigenvalues(shape, budget, study.batch_tokens, study.label_samples, not study.gpus)
    if job == "query gradients":
        return plan_query_gradients(shape, budget, study.batch_tokens)
    total = _number_of_queries(study, folder / "data/queries.jsonl")
    read = [ESTIMATORS[name] for name in estimators]
    queries = {e.columns: min(total, study.solvers.queries) if COLUMNS[e.columns].solver else total for e in read}
    reads = [(e.columns, frozenset(block.name for block in blocks if block.kind in e.kinds)) for e in read]
    ranks = dict.fromkeys(queries, study.compression.rank if job == "scores" else None)
    ranks["gradient"] = max(_lengths(folder / "data/queries.jsonl", study.max_length))
    return plan_scores(shape, budget, study.batch_tokens, queries, reads, ranks)


def _model_and_blocks(study: Study, folder: Path, stage: str) -> tuple[PreTrainedModel, list[Block]] | None:
    """None where the model is not there yet, or is of a kind that its job will refuse, in a sentence of its own."""
    try:
        config = _model_config(study, folder, stage)
        if config is None:
            return None
        model = _model_without_weights(config.to_json_string(), study.precision)
        return model, tracked_blocks(model, study.split_heads)
    except Exception:  # whatever a library makes of a user's files; a dry run goes on
        return None


def _model_config(study: Study, folder: Path, name: str) -> PreTrainedConfig | None:
    """Of a stage's model if it is there, else of the published one, or of the one that the stage or an adapter starts from."""
    stage = study.stage(name)
    known = [folder / kind / name / "config.json" for kind in ("models", "checkpoints")]
    if stage.checkpoint and stage.checkpoint.path:
        known.append(stage.checkpoint.path / "config.json")
    elif stage.checkpoint and stage.checkpoint.hub:
        cached = try_to_load_from_cache(stage.checkpoint.hub, "config.json", revision=stage.checkpoint.revision)
        known += [Path(cached)] if isinstance(cached, str) else []
    for path in known:
        if path.is_file():
            return AutoConfig.from_pretrained(path.parent, trust_remote_code=False, local_files_only=True)
    if stage.checkpoint and not _holds_adapter(stage.checkpoint):
        return None
    place = study.stage_names.index(name)
    if place:
        return _model_config(study, folder, study.stage_names[place - 1])
    return AutoConfig.for_model(**{"vocab_size": WORDS, **study.model}) if study.model else None


def _holds_adapter(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint without a config is an adapter, as far as its files are here."""
    if checkpoint.path:
        return is_adapter(checkpoint.path)
    return isinstance(
        checkpoint.hub and try_to_load_from_cache(checkpoint.hub, ADAPTER, revision=checkpoint.revision), str
    )


@cache
def _model_without_weights(config: str, precision: str) -> PreTrainedModel:
    """A language model, also for a classifier, whose head is smaller."""
    with torch.device("meta"):
        described = AutoConfig.for_model(**json.loads(config))
        return AutoModelForCausalLM.from_config(described, dtype=getattr(torch, precision))


def _lengths(path: Path, max_length: int) -> list[int]:
    """Words of the records, in place of tokens; of one record of the greatest length if there are none yet."""
    if not path.is_file():
        return [max_length]
    return _lengths_as_of(path, path.stat().st_mtime_ns, max_length)


@cache
def _lengths_as_of(path: Path, time: int, max_length: int) -> list[int]:
    """Read once for all jobs of a dry run, as long as the file is the same."""
    with path.open(encoding="utf-8") as handle:
        return [min(max_length, 2 + len(full_text(json.loads(line)).split())) for line in handle] or [max_length]


def _number_of_queries(study: Study, path: Path) -> int:
    """As many as are prepared, or as the config says."""
    corpus = study.corpus
    if path.is_file():
        with path.open("rb") as handle:
            return sum(1 for _ in handle)
    if isinstance(corpus, FileCorpus) and corpus.queries.path:
        with suppress(ForebearError):  # which the job itself says
            return sum(1 for _ in source_rows(Source(**corpus.queries.described())))
    for key, questions in (("query_passages", 1), ("query_countries", RELATIONS), ("queries", 1)):
        if isinstance(count := getattr(corpus, key, None), int):
            return questions * count
    return QUERIES
