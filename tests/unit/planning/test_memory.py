"""Partitions, smaller batches and plans change what is in memory, never what comes out."""

import copy
import math
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from transformers import GPTNeoXConfig

from conftest import random_examples
from copies import ROOT, copy_workflow, snakemake
from dense_gradients import sequence_gradients
from forebear.config.reading import parse_config, read_config
from forebear.data.batches import collate
from forebear.data.records import write_records
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.files import create_factors, stored_covariances, stored_eigenbasis
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis, eigenbasis_parts
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.gradients.capture import capture, captured_batches
from forebear.gradients.outer_products import formed
from forebear.models.checkpoints import model_without_weights, warn_of_size
from forebear.models.passes import NotEnoughMemoryError
from forebear.planning.budget import Budget, Shape, shape_of
from forebear.planning.partitions import Partition, by_map
from forebear.planning.plan import (
    announce,
    plan_covariances,
    plan_eigenvalues,
    plan_query_gradients,
    split_preconditioning,
)
from forebear.planning.score_plan import plan_scores
from forebear.queries.chain import DampedInverse
from forebear.queries.files import create_query_columns, read_query_columns
from forebear.queries.gradients import query_gradients
from forebear.runtime.memory import ASKED_MB
from forebear.scores.pairwise import Request, pairwise_scores
from forebear.scores.self_influence import self_influence
from forebear.workflow.dry_run import asked_mb, expected_jobs, expected_plans, number_of_queries, table
from plans import planned_rules


@pytest.fixture(scope="module")
def documents():
    return random_examples(4, lengths=[7, 4, 9, 6, 8, 5, 3, 9, 6, 7])


@pytest.fixture(scope="module")
def blocks(model):
    return tracked_blocks(model, split_heads=True)


@pytest.fixture(scope="module")
def columns(model, blocks, queries):
    """Two sets of columns of different numbers of queries."""
    gradients, _ = query_gradients(model, blocks, queries, 40)
    generator = torch.Generator().manual_seed(1)
    return {
        "raw": {n: formed(g) for n, g in gradients.items()},
        "few": {n: torch.randn(2, *formed(g).shape[1:], generator=generator).double() for n, g in gradients.items()},
    }


@pytest.fixture(scope="module")
def requests(blocks):
    everything = frozenset(block.name for block in blocks)
    mlp = frozenset(block.name for block in blocks if block.kind == "mlp")
    return {
        "dot": Request("raw", everything),
        "few": Request("few", mlp),
        "cosine": Request("raw", everything, cosine=True),
        "cosine-mlp": Request("few", mlp, cosine=True),
    }


@pytest.fixture(scope="module")
def expected(model, blocks, documents, columns, requests):
    """Estimator → scores [N, Q] from gradients of all documents as one matrix."""
    captured = capture(model, blocks, collate(documents, range(len(documents))))
    scores = {}
    for name, request in requests.items():
        chosen = [block for block in blocks if block.name in request.blocks]
        g = torch.cat([sequence_gradients(captured, block).flatten(1) for block in chosen], 1)
        v = torch.cat([columns[request.columns][block.name].flatten(1) for block in chosen], 1)
        scores[name] = g @ v.T
        if request.cosine:
            scores[name] /= g.norm(dim=1)[:, None] * v.norm(dim=1)
    return {name: score.numpy() for name, score in scores.items()}


def scored(model, blocks, examples, columns, requests, **options):
    """Estimator → scores [N, Q] as `pairwise_scores` writes them."""
    scores = {name: np.full((len(examples), 3), np.nan) for name in requests}

    def write(name, places, values):
        assert np.isnan(scores[name][places]).all(), "a document was scored twice"
        scores[name][places, : values.shape[1]] = values

    pairwise_scores(model, blocks, examples, columns, requests, write=write, **{"batch_tokens": 20, **options})
    return {name: score[:, : (2 if requests[name].columns == "few" else 3)] for name, score in scores.items()}


def every_map(blocks):
    return [Partition(maps) for maps in by_map(blocks)]


def every_map_and_query(blocks):
    return [Partition(maps, k, k + 1) for maps in by_map(blocks) for k in range(3)]


def uneven(blocks):
    cuts = [len(blocks) - 1, 3, 0]  # the last block alone, in another order than the model's
    return [Partition(tuple(blocks[cuts[0] :])), *(Partition(tuple(blocks[a:b])) for b, a in pairwise(cuts))]


PARTITIONS = {"one": lambda blocks: [], "maps": every_map, "maps and queries": every_map_and_query, "uneven": uneven}


@pytest.mark.parametrize("batch_tokens", [1, 25])
@pytest.mark.parametrize("partitions", PARTITIONS.values(), ids=PARTITIONS)
def test_any_partition_gives_the_dense_scores(
    model, blocks, documents, columns, requests, expected, partitions, batch_tokens
):
    options = {"partitions": partitions(blocks), "batch_tokens": batch_tokens}
    scores = scored(model, blocks, documents, columns, requests, **options)
    for name in requests:
        np.testing.assert_allclose(scores[name], expected[name], rtol=2e-6, atol=1e-6 * np.abs(expected[name]).max())
    again = scored(model, blocks, documents, columns, requests, **options)
    assert all((again[name] == scores[name]).all() for name in requests)


def test_columns_are_read_from_their_file_in_parts(tmp_path, model, blocks, documents, columns, requests, expected):
    for name, tensors in columns.items():
        losses = torch.zeros(len(next(iter(tensors.values()))))
        with create_query_columns(
            tmp_path / name, losses, blocks, {"origin": "o"}, list(map(str, range(len(losses))))
        ) as file:
            for block, tensor in tensors.items():
                file.write(block, slice(None), tensor)
    stored = {name: read_query_columns(tmp_path / name).columns for name in columns}
    options = {"partitions": every_map_and_query(blocks)}
    scores = scored(model, blocks, documents, stored, requests, **options)
    in_memory = scored(model, blocks, documents, columns, requests, **options)
    for name in requests:
        assert (scores[name] == in_memory[name]).all()


def test_documents_that_are_not_chosen_are_left_out_of_every_partition(
    model, blocks, documents, columns, requests, expected
):
    chosen = np.delete(np.arange(len(documents)), [0, 3, 9])
    scores = scored(model, blocks, documents, columns, requests, documents=chosen, partitions=every_map(blocks))
    for name in requests:
        assert np.isnan(scores[name][[0, 3, 9]]).all()
        np.testing.assert_allclose(scores[name][chosen], expected[name][chosen], rtol=1e-5, atol=1e-5)


def test_factors_of_partitions_are_those_of_all_blocks(model, blocks, documents):
    whole = fit_covariances(model, blocks, documents, seed=0, batch_tokens=25)
    basis = compute_eigenbasis(whole)
    eigenvalues = fit_eigenvalues(model, blocks, documents, basis, seed=0, batch_tokens=25)
    inverse = DampedInverse(basis, eigenvalues, Damping(relative=0.1))
    influence = self_influence(model, blocks, documents, inverse, 25)
    total = 0
    for maps in by_map(blocks):
        part = fit_covariances(model, maps, documents, seed=0, batch_tokens=25)
        assert list(part.activation) == [maps[0].module]
        for block in maps:
            torch.testing.assert_close(part.gradient[block.name], whole.gradient[block.name], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(part.activation[maps[0].module], whole.activation[maps[0].module])
        found = fit_eigenvalues(model, maps, documents, basis, seed=0, batch_tokens=25)
        for block in maps:
            torch.testing.assert_close(found[block.name], eigenvalues[block.name], rtol=1e-10, atol=1e-14)
        total = total + self_influence(model, maps, documents, inverse, 25)
    torch.testing.assert_close(total, influence, rtol=1e-10, atol=0)


def test_factors_of_partitions_make_up_one_file(tmp_path, model, blocks, documents):
    whole = fit_covariances(model, blocks, documents, seed=0, batch_tokens=25)
    with create_factors(tmp_path / "c.h5", "covariances", {"seed": 0}) as file:
        for maps in by_map(blocks):
            file.write(fit_covariances(model, maps, documents, seed=0, batch_tokens=25))
        file.note({"seconds": 1.0})
    stored = stored_covariances(tmp_path / "c.h5", {"seed": 0, "seconds": 1.0})
    torch.testing.assert_close(dict(stored.activation), whole.activation)
    torch.testing.assert_close(dict(stored.gradient), whole.gradient)
    with create_factors(tmp_path / "b.h5", "eigenbasis", {}) as file:
        for part in eigenbasis_parts(whole):
            file.write(part)
    basis, expected = stored_eigenbasis(tmp_path / "b.h5"), compute_eigenbasis(whole)
    for field, tensors in vars(expected).items():
        torch.testing.assert_close(dict(getattr(basis, field)), tensors, rtol=0, atol=0)


# Memory that runs out


ERRORS = {
    "gpu": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "processor": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 34359738368 bytes."),
    "python": MemoryError(),
}


class Limit:
    """Lets a model run out of memory at more than so many tokens, and counts how often it did."""

    def __init__(self, model, tokens, error=ERRORS["gpu"]):
        self.model, self.tokens, self.error, self.failures = copy.deepcopy(model), tokens, error, 0
        self.model.register_forward_pre_hook(self)

    def __call__(self, _, inputs):
        if inputs[0].numel() > self.tokens:
            self.failures += 1
            raise self.error


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_a_batch_that_does_not_fit_is_halved_and_later_ones_are_not_tried(model, blocks, documents, error, capsys):
    limit = Limit(model, 12, error)
    run = captured_batches(limit.model, blocks, documents, 40, "test")
    places = [(batch.indices.tolist(), batch.ids.numel()) for batch, _ in run]
    assert sorted(k for indices, _ in places for k in indices) == list(range(len(documents)))
    assert max(tokens for _, tokens in places) <= 12
    assert limit.failures == 2  # 36 tokens, 18; then it is known
    assert "test: 36 tokens did not fit into memory; going on with 18" in capsys.readouterr().out


def test_results_are_the_same_when_memory_runs_out(model, blocks, documents, queries, columns, requests, expected):
    small = Limit(model, 12).model
    scores = scored(small, blocks, documents, columns, requests, batch_tokens=1000, partitions=uneven(blocks))
    for name in requests:
        np.testing.assert_allclose(scores[name], expected[name], rtol=2e-6, atol=1e-6 * np.abs(expected[name]).max())
    (ours, our_losses), (theirs, their_losses) = (query_gradients(m, blocks, queries, 1000) for m in (small, model))
    torch.testing.assert_close(our_losses, their_losses)
    for name in ours:
        torch.testing.assert_close(formed(ours[name]), formed(theirs[name]))
    ours, theirs = (fit_covariances(m, blocks, documents, seed=0, batch_tokens=1000) for m in (small, model))
    torch.testing.assert_close(vars(ours), vars(theirs))
    basis = compute_eigenbasis(theirs)
    ours, theirs = (fit_eigenvalues(m, blocks, documents, basis, seed=0, batch_tokens=1000) for m in (small, model))
    torch.testing.assert_close(ours, theirs)
    inverse = DampedInverse(basis, theirs, Damping(relative=0.1))
    ours, theirs = (self_influence(m, blocks, documents, inverse, 1000) for m in (small, model))
    torch.testing.assert_close(ours, theirs)


def test_one_sequence_that_does_not_fit_is_an_error_in_a_sentence(model, blocks, documents):
    with pytest.raises(
        NotEnoughMemoryError, match="covariances: a sequence of 9 tokens does not fit into memory; lower"
    ):
        fit_covariances(Limit(model, 8).model, blocks, documents, seed=0, batch_tokens=100)


def test_another_error_is_not_taken_for_a_lack_of_memory(model, blocks, documents):
    limit = Limit(model, 12, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        fit_covariances(limit.model, blocks, documents, seed=0, batch_tokens=100)
    assert limit.failures == 1


class Heavy:
    """Columns of one block, of which memory holds one query's at a time."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, queries):
        if len(self.tensor[queries]) > 1:
            raise MemoryError
        return self.tensor[queries]


def test_queries_that_do_not_fit_are_an_error_in_a_sentence(model, blocks, documents, columns, requests):
    """The plan splits them (below); nothing is split a second time."""
    last = blocks[-1].name
    heavy = {name: {**tensors, last: Heavy(tensors[last])} for name, tensors in columns.items()}
    with pytest.raises(NotEnoughMemoryError, match="scores: its queries do not fit into memory; raise `memory`"):
        scored(model, blocks, documents, heavy, requests)


class Wide(torch.Tensor):
    """Columns with which memory holds the products of two documents at the most."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.addmm_ and len(args[1]) > 2:
            raise ERRORS["processor"]
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("partitions", PARTITIONS.values(), ids=PARTITIONS)
def test_a_batch_whose_products_do_not_fit_is_halved(
    model, blocks, documents, columns, requests, expected, partitions, capsys
):
    last = blocks[-1].name
    wide = {name: {**tensors, last: tensors[last].as_subclass(Wide)} for name, tensors in columns.items()}
    scores = scored(model, blocks, documents, wide, requests, batch_tokens=36, partitions=partitions(blocks))
    for name in requests:
        np.testing.assert_allclose(scores[name], expected[name], rtol=2e-6, atol=1e-6 * np.abs(expected[name]).max())
    assert "36 tokens did not fit into memory; going on with 18" in capsys.readouterr().out


def test_a_document_that_does_not_fit_beside_any_queries_is_an_error(model, blocks, documents, columns, requests):
    with pytest.raises(NotEnoughMemoryError, match="a sequence of 9 tokens"):
        scored(Limit(model, 8).model, blocks, documents, columns, requests)


# Plans


def gib(amount):
    return int(amount * 2**30)


def large_blocks(layers=4, hidden=512):
    """Of a layer: queries, keys and values by role in one map, and two maps of the MLP."""
    blocks = []
    for k in range(layers):
        blocks += [
            Block(
                f"{k}/qkv/{role}", f"{k}/qkv", "attention", slice(r * hidden, (r + 1) * hidden), (hidden, hidden), False
            )
            for r, role in enumerate("qkv")
        ]
        blocks.append(Block(f"{k}/up", f"{k}/up", "mlp", slice(0, 4 * hidden), (4 * hidden, hidden), False))
        blocks.append(Block(f"{k}/down", f"{k}/down", "mlp", slice(0, hidden), (hidden, 4 * hidden), False))
    return blocks


def shape(tokens=128.0, longest=256):
    blocks = large_blocks()
    parameters = sum(b.shape[0] * b.shape[1] for b in blocks) + 1000 * 512
    return Shape(tuple(blocks), parameters, 4 * parameters, 1000, tokens, longest)


def budget(total):
    return Budget(gib(total), gib(0.5))


def planned_scores(total, queries=40, batch_tokens=4096):
    return plan_scores(
        shape(), budget(total), batch_tokens, {"raw": queries}, [("raw", frozenset(b.name for b in shape().blocks))]
    )


PLANS = {
    "scores": planned_scores,
    "covariances": lambda total: plan_covariances(shape(), budget(total), 4096),
    "eigenvalues": lambda total: plan_eigenvalues(shape(), budget(total), 4096),
}


@pytest.mark.parametrize("planned", PLANS.values(), ids=PLANS)
def test_a_plan_covers_everything_within_its_budget_and_less_memory_takes_more_passes(planned):
    passes = []
    for total in (32, 2.5, 1.1, 0.8):
        plan = planned(total)
        assert [b for part in plan.partitions for b in part.blocks] == list(shape().blocks)
        for before, after in pairwise(plan.partitions):
            assert before.blocks[-1].module != after.blocks[0].module, "the blocks of a map were separated"
        assert plan.bytes <= plan.budget.total
        passes.append(plan.passes)
    assert passes == sorted(passes)
    assert len(planned(32).partitions) == 1
    assert planned(32).batch_tokens == 4096


def test_queries_are_split_where_the_columns_of_one_map_are_too_many():
    plan = planned_scores(1.5, queries=1000)
    for block in shape().blocks:
        slices = [part.queries.indices(1000)[:2] for part in plan.partitions if block in part.blocks]
        assert [k for first, stop in slices for k in range(first, stop)] == list(range(1000))
    assert plan.bytes <= plan.budget.total
    assert any(part.first for part in plan.partitions)


def test_what_cannot_be_split_further_is_tried_and_said(capsys):
    plan = plan_covariances(shape(), budget(0.51), 4096)
    assert len(plan.partitions) == len(by_map(shape().blocks))
    assert plan.batch_tokens == 256
    announce(plan)
    said = capsys.readouterr().out
    assert str(plan) in said
    (wanted,) = re.findall(r"warning: covariances: .* set `memory: ([\d.]+)` or more in the study.", said)
    asked = ASKED_MB["covariances"] * float(wanted) / 1024
    assert not plan_covariances(shape(), Budget(gib(asked), gib(0.5)), 4096).lack
    assert plan_covariances(shape(), Budget(gib(asked - 0.4), gib(0.5)), 4096).lack
    assert "raise `gpus`" in plan_covariances(shape(), Budget(gib(0.51), gib(0.5), gpus=1), 4096).lack
    assert not planned_scores(32).lack
    holds_nothing = plan_query_gradients(shape(), budget(0.51), 4096)
    assert holds_nothing.lack
    assert len(holds_nothing.partitions) == 1  # as more of them would save nothing


def test_passes_by_hand():
    """Covariances of everything at once: a forward pass, a backward one without weights, and A and S."""
    s = shape()
    squares = 4 * (512**2 * 4 + 2048**2 + 512**2 + 512**2 + 2048**2)  # A and three S of qkv, A and S of up and of down
    expected = (4 * s.parameters + 2 * squares) / (6 * s.parameters)
    assert plan_covariances(s, budget(32), 4096).passes == pytest.approx(expected, rel=1e-12)
    tracked = s.parameters - 1000 * 512
    contracted = (4 * s.parameters + 2 * tracked + 2 * 40 * tracked / 128) / (6 * s.parameters)
    assert planned_scores(32).passes == pytest.approx(contracted, rel=1e-12)


ALL = frozenset(block.name for block in large_blocks())


def planned_factors(total, rank, queries=400, tokens=128.0, more=()):
    counts, reads = {"factors": queries, **dict.fromkeys(more, 10)}, [(name, ALL) for name in ("factors", *more)]
    return plan_scores(shape(tokens), budget(total), 4096, counts, reads, {"factors": rank})


def test_columns_stay_factored_where_that_saves_passes():
    """With room for all, whatever is less work; with less room, whatever takes fewer passes over the documents."""
    assert planned_factors(64, 1, tokens=16.0).factored == ALL
    assert not planned_factors(64, 32).factored
    assert planned_factors(2, 8).factored == ALL
    assert len(planned_factors(2, 8).partitions) == 1
    assert "stay factored in 20 of 20 blocks" in str(planned_factors(2, 8))
    assert "factored" not in str(planned_factors(64, 32))
    assert not planned_factors(2, 600).factored  # which would take more memory and work than the matrices
    wide = {b.name for b in large_blocks() if 2048 in b.shape}
    assert planned_factors(4, 8).factored == wide  # they save memory for less work than the others
    assert planned_factors(64, 3, tokens=170.0).factored == wide  # less work: T·r·(O + I) < O·I + T·O·I/Q


@pytest.mark.parametrize("rank", [1, 4])
def test_passes_and_memory_of_factored_columns_by_hand(rank):
    s = shape(16.0)
    plan = planned_factors(2, rank, tokens=16.0)
    sides = sum(b.shape[0] + b.shape[1] for b in s.blocks)
    flops = 4 * s.parameters * 16 + 2 * 16 * 400 * rank * sides
    assert plan.factored == ALL
    assert plan.passes == pytest.approx(flops / (6 * 16 * s.parameters), rel=1e-12)
    assert plan.held_bytes == 4 * 400 * rank * sides
    more = planned_factors(2, rank, tokens=16.0, more=["matrices"])  # for which gradients are formed anyway
    tracked = s.parameters - 1000 * 512
    assert more.passes == pytest.approx((flops + (2 * 16 + 2 * 10) * tracked) / (6 * 16 * s.parameters), rel=1e-12)
    assert more.held_bytes == 4 * (400 * rank * sides + 10 * tracked)


def test_sums_in_float64_take_twice_the_memory():
    elements = sum({b.module: b.shape[1] ** 2 for b in large_blocks()}.values()) + sum(
        b.shape[0] ** 2 for b in large_blocks()
    )
    assert plan_covariances(shape(), budget(32), 4096).held_bytes == 8 * elements
    assert plan_covariances(shape(), budget(32), 4096, double=False).held_bytes == 4 * elements
    tracked = shape().parameters - 1000 * 512
    assert plan_eigenvalues(shape(), budget(32), 4096).held_bytes == 4 * elements + 8 * tracked


def test_preconditioning_takes_as_many_queries_as_fit():
    blocks = shape().blocks
    parts = split_preconditioning(blocks, 200, gib(0.5))
    for block in blocks:
        slices = [part.queries.indices(200)[:2] for part in parts if block in part.blocks]
        assert [k for first, stop in slices for k in range(first, stop)] == list(range(200))
    largest = 3 * 200 * 2048 * 512 * 4
    assert len(split_preconditioning(blocks, 200, gib(64))) == 1
    assert len(parts) > len(by_map(blocks)) > largest / gib(0.5)


def test_the_shape_of_a_model_counts_what_tokens_are_multiplied_with(model, documents):
    found = shape_of(model, tracked_blocks(model), [len(d.ids) for d in documents])
    embedding = model.get_input_embeddings().weight.numel()
    assert found.parameters == sum(p.numel() for p in model.parameters()) - embedding
    assert (found.width, found.tokens, found.longest) == (13, 6.4, 9)
    assert found.model_bytes == 8 * sum(p.numel() for p in model.parameters())


# What is expected before anything has run


def study_with(**changes):
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    config["studies"]["tiny"].update(changes)
    return parse_config(config).studies["tiny"]


def expect(study, folder):
    """Title of every job → its plan."""
    return {job.title: plan for job, plan in expected_plans(study, folder)}


SCORES = "score the documents of pretraining at the pretraining model"


def test_jobs_are_planned_from_the_config_alone(tmp_path):
    plans = expect(study_with(), tmp_path)
    planned = ["covariances of pretraining@finetuning", "gradients of the queries at the last model", SCORES]
    for plan in map(
        plans.get, [*planned, "eigenvalues of finetuning", "self-influence of the documents of pretraining"]
    ):
        names = [b.name for part in plan.partitions for b in part.blocks]
        assert names == [
            f"gpt_neox/layers/0/{b}"
            for b in ("attention/query_key_value", "attention/dense", "mlp/dense_h_to_4h", "mlp/dense_4h_to_h")
        ]
        assert 0.4 < plan.bytes / 2**30 < 1


def test_files_that_are_there_count_more_than_the_config(tmp_path):
    study = study_with(estimators=["multistage-ekfac", "gradient-dot", "cg"])
    before = expect(study, tmp_path)[SCORES]
    config = GPTNeoXConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    config.save_pretrained(tmp_path / "models/pretraining")
    (tmp_path / "data").mkdir()
    write_records(tmp_path / "data/pretraining.jsonl", [{"text": "a b c"}] * 4)
    write_records(tmp_path / "data/queries.jsonl", [{"prompt": "a", "completion": "b"}] * 500)
    after = expect(study, tmp_path)[SCORES]
    assert len({b.name for part in after.partitions for b in part.blocks}) == 12
    tracked = [b for part in after.partitions for b in part.blocks]
    elements, sides = sum(b.shape[0] * b.shape[1] for b in tracked), sum(sum(b.shape) for b in tracked)
    # A solver's columns are those of five queries; raw gradients stay sums over the queries' four tokens.
    assert after.held_bytes == 4 * (elements * (500 + 5) + 4 * sides * 500)
    assert after.passes > 10 * before.passes


def published_study(**changes):
    checkpoint = {"hub": "somebody/model", "revision": "main"}
    stages = [
        {"name": "pretraining", "checkpoint": checkpoint, "damping": 0.1},
        {"name": "finetuning", "training": {"epochs": 1, "learning_rate": 1e-4}, "damping": 0.1},
    ]
    return study_with(stages=stages, model=None, cost={}, estimators=["multistage-ekfac", "embedding"], **changes)


def test_a_published_models_shape_is_known_once_its_config_is_there(tmp_path):
    study = published_study()
    assert set(expect(study, tmp_path).values()) == {None}
    said = table("s", study, tmp_path)
    assert said.count("not known") == len(expected_jobs(study))
    assert f"snakemake --cores 1 {tmp_path}/checkpoints/pretraining/manifest.json` fetches them" in said
    config = GPTNeoXConfig(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    config.save_pretrained(tmp_path / "checkpoints/pretraining")
    assert len(expect(study, tmp_path)["covariances of finetuning"].partitions[0].blocks) == 12
    assert "not known" not in table("s", study, tmp_path)


def test_the_table_says_which_memory_is_enough(tmp_path):
    """Models that are larger than what their jobs ask for, for which nothing is raised behind the user's back."""
    wide = GPTNeoXConfig(hidden_size=2048, num_hidden_layers=8, num_attention_heads=2, vocab_size=50000)
    wide.save_pretrained(tmp_path / "checkpoints/pretraining")
    (said,) = re.findall(r"set `memory: ([\d.]+)` or more in the study s\.", table("s", published_study(), tmp_path))
    plans = expect(published_study(memory=float(said)), tmp_path)
    assert not any(plan.lack for plan in plans.values())
    assert plans["let the last model answer the queries"].bytes > 2**30 * 2  # the model alone is more than the default
    less = expect(published_study(memory=float(said) - 0.2), tmp_path)
    assert any(plan.lack for plan in less.values())
    on_gpus = expect(published_study(gpus=2), tmp_path)
    assert not any(plan.lack for plan in on_gpus.values())
    assert "on 2 GPUs" in table("s", published_study(gpus=2), tmp_path)


def test_the_table_says_where_the_number_of_queries_is_assumed(tmp_path):
    corpus = {
        "documents": dict.fromkeys(("pretraining", "finetuning"), "d.jsonl"),
        "queries": str(tmp_path / "q.jsonl"),
    }
    study = study_with(corpus=corpus)
    assert "100 queries are assumed" in table("s", study, tmp_path)
    write_records(tmp_path / "q.jsonl", [{"prompt": "a", "completion": "b"}] * 500)
    assert "assumed" not in table("s", study, tmp_path)
    assert number_of_queries(study, tmp_path) == 500


def test_a_mistake_in_the_config_ends_the_command_in_its_sentence(tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text(yaml.safe_dump({"studies": {"tiny": {"memry": 2}}}))  # which adds to the tiny study
    command = [sys.executable, "-m", "forebear.workflow.dry_run", ROOT / "tests/tiny.yaml", more]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: config: unknown key `studies.tiny.memry`")
    more.write_text("studies: [")
    with pytest.raises(ForebearError, match=r"more\.yaml: cannot be read as a config"):
        read_config(more)
    with pytest.raises(ForebearError, match=r"none\.yaml: cannot be read as a config"):
        read_config(tmp_path / "none.yaml")


def test_a_model_that_cannot_be_built_is_an_error_in_a_sentence(tmp_path):
    study = study_with(model={"model_type": "gpt_neox", "hidden_size": 16, "num_attention_heads": 3}, cost={})
    with pytest.raises(
        ForebearError, match=r"'gpt_neox' .* hidden size is not divisible .*; correct the study's `model`"
    ):
        table("tiny", study, tmp_path)


def test_a_model_that_is_more_than_its_job_asked_for_is_said_before_it_is_loaded(tmp_path, capsys):
    config = GPTNeoXConfig(hidden_size=2048, num_hidden_layers=4, num_attention_heads=2, vocab_size=50000)
    config.save_pretrained(tmp_path)  # and no weights
    loading = {"gpus": 0, "trust_remote_code": False, "precision": "float32"}
    warn_of_size("answers", tmp_path / "manifest.json", 2000, loading)
    taken = (450 << 20) + 4 * model_without_weights(tmp_path).num_parameters()
    wanted = math.ceil(10 * taken / 2**20 / 2000) / 10
    said = capsys.readouterr().out
    assert f"warning: answers: the model and the process alone take {taken / 2**30:.1f} GB, but the job asked" in said
    assert f"set `memory: {wanted:g}` or more in the study." in said
    warn_of_size("answers", tmp_path / "manifest.json", 2000 * wanted, loading)
    warn_of_size("answers", tmp_path / "manifest.json", 2000, {**loading, "gpus": 2})
    warn_of_size("scores", tmp_path / "manifest.json", 2000, {**loading, "precision": "bfloat16"})
    assert not capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"compression": {"rank": 2}, "shards": 3, "estimators": ["multistage-relatif", "trak"], "memory": 2.5}],
    ids=["whole", "compressed"],
)
def test_the_table_has_the_jobs_of_a_dry_run_and_what_they_ask_for(tmp_path, changes):
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    config["studies"]["tiny"].update(changes)
    output = snakemake(copy_workflow(tmp_path, config), "--dry-run").stdout
    study = parse_config(config).studies["tiny"]
    needs = {
        (re.sub(", shard .*", "", title), int(mb))
        for title, mb in re.findall(r"^Job \d+: tiny: (.*) \[1 threads, (\d+) MB, 0 GPUs\]", output, re.M)
    }
    asked = {(job.title, asked_mb(study, job.kind)) for job in expected_jobs(study)}
    assert asked <= needs
    planned = ("covariances", "eigenvalues", "self-influence", "gradients", "score ", "solve", "train", "let")
    assert {need for need in needs if need[0].startswith(planned)} <= asked


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
def test_a_dry_run_tells_of_compressed_queries_and_of_documents_that_are_scored_again(tmp_path, shards):
    config = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    config["studies"]["tiny"].update(shards=shards, compression={"rank": 2}, estimators=["multistage-relatif", "trak"])
    rules = planned_rules(copy_workflow(tmp_path, config))
    assert {"compress_queries", "compute_pairwise_scores", "gather_scores", "rescore_documents"} <= rules
    assert "normalise_scores" in rules
