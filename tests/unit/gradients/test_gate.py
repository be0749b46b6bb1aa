"""What a loaded model must be, tried on a few tokens: one sentence for each thing that is wrong."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from chains import OPTIONS
from conftest import fine_tuned, random_examples, tiny_model
from dense_gradients import sequence_gradients
from forebear.data.batches import collate
from forebear.errors import ForebearError
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.fit import fit_covariances, fit_eigenvalues
from forebear.factors.gauss_newton import GaussNewton
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.capture import capture
from forebear.gradients.gate import check_model
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.queries.solve import SolvedInverse
from tiny_families import tiny_config
from tiny_families import tiny_model as tiny_family


def refusal(model: nn.Module) -> str:
    with pytest.raises(ForebearError) as error:
        check_model(model, tracked_blocks(model))
    assert "\n" not in str(error.value)
    return str(error.value)


def untrained(family: str, dtype: torch.dtype, **options) -> nn.Module:
    """As transformers initialises it, which hardly tells one token from another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(tiny_config(family, **options)).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2", "opt", "qwen3_moe", "mixtral", "gemma2"])
def test_causal_models_pass_in_every_precision(capsys, family, dtype):
    model = untrained(family, dtype)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the fast one wants larger models
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.train().requires_grad_(True)
    check_model(model, tracked_blocks(model))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    model.eval().requires_grad_(False)
    check_model(model, tracked_blocks(model))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert "no gradient" not in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_masked_language_model_is_refused_whatever_its_weights(family, dtype):
    sentence = refusal(untrained(family, dtype, is_decoder=False))
    assert "changes with the tokens after it" in sentence
    assert "take a causal one, or set `is_decoder` to true" in sentence
    check_model(model := untrained(family, dtype, is_decoder=True), tracked_blocks(model))


def test_a_model_that_looks_one_token_ahead_is_refused():
    model = tiny_model(seed=0)
    layer = model.gpt_neox.layers[1]
    forward = layer.mlp.forward
    layer.mlp.forward = lambda x: forward(x + 0.1 * x.roll(-1, dims=1))
    assert "changes with the tokens after it" in refusal(model)


def test_a_model_that_reads_the_length_of_the_batch_is_refused():
    model = tiny_model(seed=0)
    forward = model.gpt_neox.layers[0].mlp.forward
    model.gpt_neox.layers[0].mlp.forward = lambda x: forward(x) * x.shape[1]
    assert "changes when padding follows" in refusal(model)


def test_weights_that_are_not_finite_are_refused():
    model = tiny_model(seed=0)
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight[0, 0] = torch.nan
    assert "logits are not finite" in refusal(model)


def test_a_weight_that_is_read_without_calling_its_map_is_refused():
    """As fused kernels do; what the hooks see would be no gradient, or a part of it."""
    model = tiny_model(seed=0)
    mlp = model.gpt_neox.layers[1].mlp
    linear = mlp.dense_h_to_4h
    mlp.forward = lambda x: mlp.dense_4h_to_h(mlp.act(x @ linear.weight.T + linear.bias))
    assert "gradient of gpt_neox/layers/1/mlp/dense_h_to_4h" in refusal(model)
    scaled = tiny_model(seed=0)
    mlp = scaled.gpt_neox.layers[0].mlp
    mlp.forward = lambda x: mlp.dense_4h_to_h(mlp.act(mlp.dense_h_to_4h(x) + x @ mlp.dense_h_to_4h.weight.T))
    assert "gradient of gpt_neox/layers/" in refusal(scaled)


def test_what_cannot_be_run_on_tokens_ends_in_a_sentence():
    model = tiny_model(seed=0)
    model.gpt_neox.layers[0].mlp.forward = lambda x: x @ torch.zeros(3, 3, dtype=x.dtype)
    assert "cannot be run on tokens alone (RuntimeError" in refusal(model)


def test_a_model_of_few_positions_is_tried_on_few_tokens():
    model = untrained("gpt2", torch.float32, n_positions=6)
    check_model(model, tracked_blocks(model), max_length=6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral"])
def test_classifiers_are_tried_too(family):
    config = tiny_config(family, num_labels=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).double().eval()
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    check_model(model, tracked_blocks(model))
    layers = model.base_model.h if family == "gpt2" else model.base_model.layers
    forward = layers[0].mlp.forward
    layers[0].mlp.forward = lambda x: forward(x) + 0.1 * x.roll(-1, dims=1)
    assert "changes with the tokens after it" in refusal(model)


# Blocks whose gradients are all zero


def with_zero_output(model: nn.Module) -> nn.Module:
    """An output layer that is zero, as some are initialised: maps before it have no gradient."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.zero_()
    return model


def test_what_has_no_gradient_is_said(capsys):
    model = with_zero_output(tiny_model(seed=0))
    check_model(model, tracked_blocks(model))
    said = capsys.readouterr().out
    assert "1 of 8 linear maps have no gradient, and so no part in scores: gpt_neox/layers/1/mlp/dense_h_to_4h" in said
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert "not one of its tracked maps has a gradient" in refusal(model)


def test_an_unused_map_is_said(capsys):
    model = tiny_model(seed=0)
    model.gpt_neox.layers[0].mlp.spare = nn.Linear(8, 8).double()
    blocks = tracked_blocks(model)
    check_model(model, blocks)
    assert "layers/0/mlp/spare" in capsys.readouterr().out
    examples = random_examples(3, lengths=[6, 4])
    captured = capture(model, blocks, collate(examples, [0, 1]))
    (spare,) = [block for block in blocks if block.name.endswith("spare")]
    assert not sequence_gradients(captured, spare).any()


@pytest.fixture(scope="module", params=["zero output", "unused"])
def silent(request):
    """(models of two stages, the blocks without any gradient)."""
    models = [tiny_model(seed=0)]
    models.append(fine_tuned(models[0], seed=1))
    if request.param == "zero output":
        return [with_zero_output(model) for model in models], ["gpt_neox/layers/1/mlp/dense_h_to_4h"]
    for model in models:
        model.gpt_neox.layers[0].mlp.spare = nn.Linear(8, 8).double()
    return models, ["gpt_neox/layers/0/mlp/spare"]


def inverses(models, stages, damping, pull=0.0):
    blocks = tracked_blocks(models[0])
    for model, examples in zip(models, stages, strict=True):
        basis = compute_eigenbasis(fit_covariances(model, blocks, examples, 0, 40))
        yield DampedInverse(basis, fit_eigenvalues(model, blocks, examples, basis, 0, 40), damping, pull)


def test_blocks_without_curvature_have_no_part_in_scores(capsys, silent, stage_examples, queries):
    models, names = silent
    blocks = tracked_blocks(models[0])
    gradients, _ = query_gradients(models[1], blocks, queries, 40)
    relative = list(inverses(models, stage_examples[:2], Damping(relative=0.1)))
    columns = apply_chain(gradients, blocks, relative[::-1])
    assert all(column.isfinite().all() for column in columns.values())
    assert [name for name, column in columns.items() if not column.any()] == names
    assert f"1 of {len(blocks)} blocks: {names[0]}" in capsys.readouterr().out
    found = apply_chain(gradients, blocks, list(inverses(models, stage_examples[:2], Damping(absolute=0.5))))
    for name in names:
        torch.testing.assert_close(found[name], gradients[name].formed() * 4)


def test_solvers_leave_blocks_without_curvature_out(silent, stage_examples, queries):
    models, names = silent
    blocks = [block for block in tracked_blocks(models[0]) if "mlp" in block.name]
    (ekfac,) = inverses(models[:1], stage_examples[:1], Damping(relative=0.1))
    unformed, _ = query_gradients(models[0], blocks, queries, 40)
    gradients = {block.name: unformed[block.name].formed() for block in blocks}
    gradients[names[0]] = torch.ones_like(gradients[names[0]])  # of another stage, say
    operator = GaussNewton(models[0], blocks, stage_examples[0], 40)
    options = replace(OPTIONS, tolerance=0.1, iterations=3, refinements=2, rank=4)
    for solver in ("pcg", "cg", "arnoldi"):
        inverse = SolvedInverse(operator, ekfac, solver, options, seed=0)
        found = apply_chain(gradients, blocks, [inverse])
        assert all(values.isfinite().all() for values in found.values())
        assert [name for name, values in found.items() if not values.any()] == names
    like = torch.zeros(1, dtype=torch.float64)
    assert (inverse.dampings(like) > 0).all()


def test_a_mixture_of_experts_in_low_precision_passes():
    """Near ties may send a token elsewhere; that is no look ahead."""
    for seed in range(3):
        model = tiny_family("mixtral", torch.bfloat16)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += (
                    0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)).bfloat16()
                )
        check_model(model, tracked_blocks(model))
