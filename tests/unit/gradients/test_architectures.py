"""Every family of models: gradients against autograd, heads, padding, and what is printed of its blocks."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from chains import Chain, dense_scores, relative_difference
from conftest import VOCABULARY, fine_tuned, random_examples, unpadded_loss
from dense_gradients import sequence_gradients
from forebear.data.batches import IGNORED, Batch, collate, number_of_positions
from forebear.errors import ForebearError
from forebear.factors.fit import _COVARIANCE_STREAM, _EIGENVALUE_STREAM, fit_covariances, fit_eigenvalues
from forebear.factors.kronecker import compute_eigenbasis
from forebear.gradients.blocks import block_table, factor_elements, summary, tracked_blocks
from forebear.gradients.capture import capture, sampled_labels
from forebear.gradients.outer_products import formed
from forebear.queries.gradients import query_gradients

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
FAMILIES = {
    "gpt_neox": {**SMALL, "model_type": "gpt_neox"},
    "bloom": {"model_type": "bloom", "hidden_size": 8, "n_layer": 2, "n_head": 4},
    "gpt2": {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 4, "n_inner": 12, "n_positions": 32},
    "opt": {**SMALL, "model_type": "opt", "word_embed_proj_dim": 8, "ffn_dim": 12},
    "llama": {**GROUPED, "model_type": "llama"},
    "llama_with_bias": {**GROUPED, "model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama_tied": {**GROUPED, "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": {**GROUPED, "model_type": "qwen2"},
    "mistral": {**GROUPED, "model_type": "mistral", "head_dim": 6, "sliding_window": 4},
}
# The map that reads the heads' values side by side, in layer 0.
OUTPUT_MAPS = {
    "gpt_neox": "gpt_neox.layers.0.attention.dense",
    "bloom": "transformer.h.0.self_attention.dense",
    "gpt2": "transformer.h.0.attn.c_proj",
    "opt": "model.decoder.layers.0.self_attn.out_proj",
}


def build(options: dict) -> nn.Module:
    """A float64 model whose weights, biases and norms are all far from their initial values."""
    options = dict(options)
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(options.pop("model_type"), **options, **tokens)
    model = AutoModelForCausalLM.from_config(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.35 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return build(FAMILIES[family])


@pytest.fixture(scope="module")
def examples():
    return random_examples(3, lengths=[6, 2, 9, 5], prompts=[3, 1, 6, 4])


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def true_gradients(model, modules, example, tokens=None) -> dict[str, torch.Tensor]:
    """module → [O, I], differentiated with respect to the stored parameters; `tokens` as for `unpadded_loss`."""
    maps = {module: model.get_submodule(module.replace("/", ".")) for module in modules}
    parameters = {(m, name): p for m, linear in maps.items() for name, p in linear.named_parameters()}
    gradients = torch.autograd.grad(unpadded_loss(model, example, tokens), list(parameters.values()))
    named = dict(zip(parameters, gradients, strict=True))
    result = {}
    for module, linear in maps.items():
        weight = named[module, "weight"].T if isinstance(linear, Conv1D) else named[module, "weight"]
        columns = [weight, named[module, "bias"][:, None]] if (module, "bias") in named else [weight]
        result[module] = torch.cat(columns, 1)
    return result


@pytest.mark.parametrize("split_heads", [False, True])
def test_gradients_equal_those_of_the_stored_parameters(model, examples, split_heads):
    blocks = tracked_blocks(model, split_heads)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    expected = [true_gradients(model, {block.module for block in blocks}, example) for example in examples]
    for block in blocks:
        rows = torch.stack([gradients[block.module][block.rows] for gradients in expected])
        assert rows.shape[1:] == block.shape
        assert rows.abs().max() > 1e-3
        assert_close(sequence_gradients(captured, block), rows)


def drawn_tokens(model, examples, seed) -> list[torch.Tensor]:
    """For every sequence [T]: its tokens, with those that a fit draws in place of the targets."""
    tokens = []
    for index, example in enumerate(examples):
        labels = sampled_labels(examples, seed)(model(example.ids[None]).logits, collate(examples, [index]))[0]
        drawn = example.ids.clone()
        drawn[1:][labels[:-1] != IGNORED] = labels[:-1][labels[:-1] != IGNORED]
        tokens.append(drawn)
    return tokens


@pytest.mark.parametrize("split_heads", [False, True])
def test_factors_equal_those_of_the_stored_parameters(model, examples, split_heads):
    """A and S of one position at a time, Λ from gradients of the stored parameters; no batch, no padding."""
    blocks = tracked_blocks(model, split_heads)
    modules = {block.module: block for block in blocks}
    covariances = fit_covariances(model, blocks, examples, seed=4, batch_tokens=20)
    activation = {module: torch.zeros(block.shape[1], block.shape[1]).double() for module, block in modules.items()}
    gradient = {block.name: torch.zeros(block.shape[0], block.shape[0]).double() for block in blocks}
    for example, tokens in zip(examples, drawn_tokens(model, examples, (4, _COVARIANCE_STREAM, 0)), strict=True):
        seen = {}
        handles = [
            model.get_submodule(m.replace("/", ".")).register_forward_hook(
                lambda _, args, output, m=m, seen=seen: seen.update({m: (args[0].flatten(0, -2), output)})
            )
            for m in modules
        ]
        loss = unpadded_loss(model, example, tokens)
        for handle in handles:
            handle.remove()
        back = torch.autograd.grad(loss, [output for _, output in seen.values()])
        back = {module: g.flatten(0, -2) for module, g in zip(seen, back, strict=True)}
        for t in range(len(example.ids) - 1):
            for module, block in modules.items():
                a = seen[module][0][t].detach()
                a = torch.cat([a, a.new_ones(1)]) if block.bias else a
                activation[module] += torch.outer(a, a) / number_of_positions(examples)
            for block in blocks:
                g = back[block.module][t, block.rows]
                gradient[block.name] += torch.outer(g, g) / number_of_positions(examples)
    for module, expected in activation.items():
        assert_close(covariances.activation[module], expected)
    for block, expected in gradient.items():
        assert_close(covariances.gradient[block], expected)

    basis = compute_eigenbasis(covariances)
    eigenvalues = fit_eigenvalues(model, blocks, examples, basis, seed=4, batch_tokens=20)
    drawn = drawn_tokens(model, examples, (4, _EIGENVALUE_STREAM, 0))
    true = [true_gradients(model, modules, e, tokens) for e, tokens in zip(examples, drawn, strict=True)]
    for block in blocks:
        left, right = basis.gradient[block.name], basis.activation[block.module]
        rotated = [left.T @ gradients[block.module][block.rows] @ right for gradients in true]
        assert_close(eigenvalues[block.name], torch.stack(rotated).square().mean(0))


@pytest.mark.parametrize("split_heads", [False, True])
def test_two_stage_scores_equal_dense_kronecker_matrices(model, examples, split_heads):
    stages = [random_examples(8, lengths=[7, 4, 6, 5]), random_examples(9, lengths=[6, 5, 7], prompts=[3, 2, 4])]
    chain = Chain([model, fine_tuned(model, seed=1)], stages, examples, split_heads)
    expected = dense_scores(chain, 0, 1)
    assert relative_difference(chain.scores(chain.scaled(0, 1)), expected) < 1e-10
    assert relative_difference(chain.scores(chain.scaled(0, 1)[::-1]), expected) > 1e-3


def test_all_maps_of_the_layers_are_tracked_and_nothing_else(family, model):
    blocks = tracked_blocks(model)
    layer = model.get_submodule(blocks[0].module.replace("/", ".").rpartition(".0.")[0])[0]
    matrices = [p for p in layer.parameters() if p.ndim == 2]
    assert len(blocks) == 2 * len(matrices)
    assert {block.kind for block in blocks} == {"attention", "mlp"}
    assert {block.bias for block in blocks} == {family not in ("llama", "llama_tied", "mistral")} or family == "qwen2"
    parameters = sum(block.shape[0] * block.shape[1] for block in blocks)
    norms = sum(p.numel() for name, p in layer.named_parameters() if "norm" in name or "ln_" in name)
    assert parameters == 2 * (sum(p.numel() for p in layer.parameters()) - norms)


def test_heads_partition_their_maps(model):
    whole = {block.module: block for block in tracked_blocks(model)}
    heads, shared = model.config.num_attention_heads, getattr(model.config, "num_key_value_heads", None)
    split = [block for block in tracked_blocks(model, split_heads=True) if block.name not in whole]
    assert len(split) == 2 * (heads + 2 * (shared or heads))
    for module in {block.module for block in split}:
        rows = sorted((b.rows.start, b.rows.stop) for b in split if b.module == module)
        edges = [0, *(stop for _, stop in rows)]
        assert [start for start, _ in rows] == edges[:-1]
        assert edges[-1] == whole[module].shape[0]


def head_outputs(family: str, model: nn.Module, factors: dict[str, float]) -> torch.Tensor:
    """What layer 0's heads hand to its output map, [T, heads, size], after scaling some heads' parameters."""
    model = copy.deepcopy(model)
    seen = []
    with torch.no_grad():
        for block in tracked_blocks(model, split_heads=True):
            factor = factors.get(block.name.rpartition("/")[2], 1.0) if "/0/" in block.name else 1.0
            linear = model.get_submodule(block.module.replace("/", "."))
            (linear.weight.T if isinstance(linear, Conv1D) else linear.weight)[block.rows] *= factor
            if block.bias:
                linear.bias[block.rows] *= factor
        output_map = model.get_submodule(OUTPUT_MAPS.get(family, "model.layers.0.self_attn.o_proj"))
        output_map.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        model(torch.arange(6)[None])
    return seen[0].unflatten(-1, (model.config.num_attention_heads, -1))


@pytest.mark.parametrize("shared", [0, 1])
def test_heads_are_the_rows_that_they_read(family, model, shared):
    """A head is linear in its values, and only the product of its queries and keys counts."""
    heads = model.config.num_attention_heads
    group = heads // (getattr(model.config, "num_key_value_heads", None) or heads)
    readers = list(range(shared * group, (shared + 1) * group))
    expected = head_outputs(family, model, {})
    expected[:, readers] *= 3
    queries = {f"q{h}": 2.0 for h in readers}
    assert_close(head_outputs(family, model, {f"v{shared}": 3}), expected)
    assert_close(head_outputs(family, model, {**queries, f"k{shared}": 0.5, f"v{shared}": 3}), expected)
    hotter = head_outputs(family, model, {f"q{readers[0]}": 2.0, f"v{shared}": 3})
    others = [h for h in range(heads) if h != readers[0]]
    assert_close(hotter[:, others], expected[:, others])
    assert (hotter[:, readers[0]] - expected[:, readers[0]]).abs().max() > 1e-3


def test_padding_changes_nothing(model, examples):
    """Longer padding, of another token, leaves activations and gradients of real positions as they were."""
    blocks = tracked_blocks(model)
    for index, example in enumerate(examples):
        alone = collate(examples, [index])
        width, extra = len(example.ids), 4
        padded = Batch(
            alone.indices,
            nn.functional.pad(alone.ids, (0, extra), value=VOCABULARY - 1),
            nn.functional.pad(alone.labels, (0, extra), value=IGNORED),
            nn.functional.pad(alone.positions, (0, extra), value=False),
        )
        short, long = capture(model, blocks, alone), capture(model, blocks, padded)
        for block in blocks:
            for of_short, of_long in zip(short.block(block), long.block(block), strict=True):
                assert_close(of_long[:, :width], of_short)
            assert not long.block(block)[1][:, width:].any()
            assert not long.positions[:, width:].any()


def test_an_unknown_architecture_is_tracked_by_its_linear_maps(examples):
    model = build({**SMALL, "model_type": "phi"})
    blocks = tracked_blocks(model)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    expected = [true_gradients(model, {block.module for block in blocks}, example) for example in examples]
    for block in blocks:
        assert_close(sequence_gradients(captured, block), torch.stack([g[block.module] for g in expected]))
    assert "PhiForCausalLM: 12 blocks of 12 linear maps are tracked" in summary(model, blocks)
    with pytest.raises(ForebearError, match="how phi lays out its heads is not known"):
        tracked_blocks(model, split_heads=True)


@pytest.mark.parametrize("shared", ["in a layer", "between layers"])
def test_the_gradient_of_a_map_that_is_used_twice_is_the_sum_over_its_uses(examples, shared):
    """Each use counts in the covariances, so that positions count twice."""
    model = build(FAMILIES["gpt_neox"])
    layers = model.gpt_neox.layers
    if shared == "in a layer":
        layers[0].mlp.forward = lambda x, mlp=layers[0].mlp: mlp.dense_4h_to_h(
            mlp.dense_h_to_4h(x) + mlp.dense_h_to_4h(x * x)
        )
    else:  # two modules with the same parameters
        layers[1].mlp.dense_h_to_4h.weight = layers[0].mlp.dense_h_to_4h.weight
        layers[1].mlp.dense_h_to_4h.bias = layers[0].mlp.dense_h_to_4h.bias
    blocks = tracked_blocks(model)
    assert len(blocks) == (8 if shared == "in a layer" else 7)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    expected = [true_gradients(model, {block.module for block in blocks}, example) for example in examples]
    for block in blocks:
        assert_close(sequence_gradients(captured, block), torch.stack([g[block.module] for g in expected]))
    covariances = fit_covariances(model, blocks, examples, seed=4, batch_tokens=20)
    assert {name: share.item() for name, share in covariances.shares.items()} == {
        "gpt_neox/layers/0/mlp/dense_h_to_4h": 2.0
    }
    basis = compute_eigenbasis(covariances)
    assert fit_eigenvalues(model, blocks, examples, basis, seed=4, batch_tokens=20)[blocks[2].name].isfinite().all()
    (gradients, _), (alone, _) = (query_gradients(model, blocks, examples, tokens) for tokens in (1000, 1))
    for block in blocks:
        assert_close(formed(gradients[block.name]), sequence_gradients(captured, block))
        assert_close(formed(alone[block.name]), sequence_gradients(captured, block))


def test_what_a_model_writes_over_is_seen_before(examples):
    """A scaled embedding, and a map's output that is doubled in place."""
    plain = build(FAMILIES["llama"])
    blocks, batch = tracked_blocks(plain), collate(examples, range(len(examples)))
    model = copy.deepcopy(plain).requires_grad_(False)
    model.model.embed_tokens.register_forward_hook(lambda _, __, output: output.mul_(3))
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)).mul_(2)
    with torch.no_grad():
        plain.model.embed_tokens.weight.mul_(3)
        plain.model.layers[0].mlp.down_proj.weight.mul_(2)
    doubled = capture(plain, blocks, batch)
    in_place = capture(model, blocks, batch)
    for block in blocks:
        factor = 2 if block.name == "model/layers/0/mlp/down_proj" else 1
        assert_close(sequence_gradients(in_place, block), factor * sequence_gradients(doubled, block))


def test_a_model_that_writes_over_what_a_map_reads_is_refused(examples):
    model = build(FAMILIES["llama"])
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x)) + x.zero_()
    model.requires_grad_(False)
    with pytest.raises(ForebearError, match="writes over what it reads"):
        capture(model, tracked_blocks(model)[4:5], collate(examples, [0]))


def test_factors_of_heads_count_the_shared_activations_once():
    model = build(FAMILIES["gpt2"])
    whole, split = tracked_blocks(model)[0], tracked_blocks(model, split_heads=True)[:12]
    assert factor_elements([whole]) == [24**2 + 24 * 9 + 9**2]
    assert sum(factor_elements(split)) == 12 * (2**2 + 2 * 9) + 9**2
    assert block_table([whole]).splitlines()[1].split()[1:6] == ["attention", "24", "9", "yes", "216"]


def test_the_table_of_a_folder_needs_no_weights(tmp_path):
    build(FAMILIES["qwen2"]).config.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "forebear.gradients.blocks", str(tmp_path)]
    shown = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert "model/layers/0/self_attn/q_proj" in shown
    assert "14 blocks of 14 linear maps" in shown
    refused = subprocess.run([*command[:-1], str(tmp_path / "none")], text=True, capture_output=True, check=False)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


def test_a_pass_in_bfloat16_leaves_float32(examples):
    """Rounding is all that a half-precision pass adds; sums are in float32."""
    model = build(FAMILIES["gpt_neox"]).float()
    blocks = tracked_blocks(model)
    batch = collate(examples, range(len(examples)))
    exact, rounded = capture(model, blocks, batch), capture(model.bfloat16(), blocks, batch)
    assert rounded.losses.dtype is torch.float32
    for block in blocks:
        expected, found = sequence_gradients(exact, block), sequence_gradients(rounded, block)
        assert found.dtype is torch.float32
        assert (found - expected).norm() < 0.1 * expected.norm()
