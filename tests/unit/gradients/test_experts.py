"""Mixtures of experts: each expert's maps are blocks, against the plain thing, one sequence and one token at a time."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from chains import Chain, dense_scores, relative_difference
from conftest import VOCABULARY, fine_tuned, random_examples, unpadded_loss
from dense_gradients import sequence_gradients
from forebear.artifacts.shards import gather_factor, shard_kind
from forebear.data.batches import IGNORED, batch_indices, collate, number_of_positions
from forebear.factors.eigenvalue_functions import Damping
from forebear.factors.files import create_factors, read_eigenbasis, stored_covariances
from forebear.factors.fit import _COVARIANCE_STREAM, _EIGENVALUE_STREAM, fit_covariances, fit_eigenvalues
from forebear.factors.gauss_newton import GaussNewton, pack
from forebear.factors.kronecker import compute_eigenbasis, kfac_eigenvalues
from forebear.gradients.blocks import block_table, summary, tracked_blocks, tracked_share
from forebear.gradients.capture import capture, sampled_labels
from forebear.gradients.experts import IMPLEMENTATION, is_fused, watched
from forebear.gradients.outer_products import formed
from forebear.planning.budget import budget_of, shape_of
from forebear.planning.plan import plan_covariances
from forebear.planning.score_plan import plan_scores
from forebear.queries.chain import apply_chain
from forebear.queries.files import create_query_columns, read_query_columns
from forebear.queries.gradients import query_gradients, stream_query_gradients

SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 6,
    "moe_intermediate_size": 6,
    "shared_expert_intermediate_size": 6,
    "max_position_embeddings": 32,
    "num_experts_per_tok": 2,
}
LATENT = {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_routed_experts": 5}
FAMILIES = {
    "mixtral": {**SMALL, "num_local_experts": 5},
    "qwen3_moe": {**SMALL, "num_experts": 5, "decoder_sparse_step": 1, "head_dim": 4},
    "qwen2_moe": {**SMALL, "num_experts": 5, "decoder_sparse_step": 1},
    "olmoe": {**SMALL, "num_experts": 5},
    "gpt_oss": {**SMALL, "num_local_experts": 5, "head_dim": 4},  # transposed, with biases, its own gate
    "deepseek_v2": {**SMALL, **LATENT, **GROUPS, "topk_method": "greedy"},
    "deepseek_v3": {**SMALL, **LATENT, **GROUPS},
    "nemotron_h": {  # without a gate
        **{**SMALL, **GROUPS, "n_shared_experts": 1, "moe_shared_expert_intermediate_size": 6},
        **{"layers_block_type": ["moe", "attention"], "head_dim": 4, "mamba_num_heads": 2, "mamba_head_dim": 4},
        **{"ssm_state_size": 4, "chunk_size": 4, "n_groups": 1},
    },
}


def build(family: str, seed: int = 0, **options) -> torch.nn.Module:
    """A float64 model whose weights are far from their initial values; transformers' own loop over experts runs it."""
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **tokens, **options})
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.35 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
            parameter += 1.0 if parameter.ndim == 1 else 0.0
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def moe(request):
    return build(request.param)


@pytest.fixture(scope="module")
def mixtral():
    return build("mixtral")


@pytest.fixture(scope="module")
def sequences():
    return random_examples(3, lengths=[6, 2, 9, 5], prompts=[3, 1, 6, 4])


def assert_close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def experts_of(model):
    return {name: module for name, module in model.named_modules() if is_fused(module)}


def true_gradients(model, blocks, loss):
    """module → [O, I], of the stored parameters, whatever their layout."""
    places = {}
    for block in blocks:
        path, _, number = block.module.replace("/", ".").rpartition(".")
        if block.share is None:
            linear = model.get_submodule(block.module.replace("/", "."))
            places[block.module] = (linear.weight, linear.bias, None, False)
        else:
            parent, _, name = path.rpartition(".")
            experts = model.get_submodule(parent)
            bias = getattr(experts, f"{name}_bias", None)
            places[block.module] = (getattr(experts, name), bias, int(number), experts.is_transposed)
    tensors = {id(t): t for weight, bias, *_ in places.values() for t in (weight, bias) if t is not None}
    found = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values()), allow_unused=True), strict=True))
    found = {key: torch.zeros_like(tensors[key]) if g is None else g for key, g in found.items()}
    result = {}
    for module, (weight, bias, expert, transposed) in places.items():
        parts = [found[id(t)] if expert is None else found[id(t)][expert] for t in (weight, bias) if t is not None]
        parts[0] = parts[0].T if transposed else parts[0]
        result[module] = torch.cat([parts[0], *(part[:, None] for part in parts[1:])], 1)
    return result


def test_one_expert_at_a_time_gives_what_they_give_together(moe, sequences):
    ids = torch.stack([example.ids for example in random_examples(1, lengths=[7, 7])])
    expected, calls = moe(ids, use_cache=False).logits, []

    def watch(experts, name, expert, vectors, output, tokens):
        calls.append((name, expert, len(tokens), vectors.shape, output.shape))
        return output

    with watched(moe, list(experts_of(moe).values()), watch):
        assert_close(moe(ids, use_cache=False).logits, expected, 1e-6)  # some routers are in float32
    assert len({(name, expert) for name, expert, *_ in calls}) > 4
    assert moe.config._experts_implementation == "eager"


def test_the_fast_implementation_is_restored_after_an_error():
    model = build("mixtral", intermediate_size=8).float()  # the fast one wants rows of 16 bytes
    model.set_experts_implementation("grouped_mm")
    ids = torch.arange(6)[None]
    with watched(model, list(experts_of(model).values()), lambda *_: 1 / 0):
        assert model.config._experts_implementation == IMPLEMENTATION
        with pytest.raises(ZeroDivisionError):
            model(ids)
    assert model.config._experts_implementation == "grouped_mm"
    expected = model(ids).logits
    with watched(model, list(experts_of(model).values()), lambda *arguments: arguments[4]):
        torch.testing.assert_close(model(ids).logits, expected)


def test_every_experts_maps_are_blocks(moe):
    blocks = tracked_blocks(moe)
    of_experts = [block for block in blocks if block.share is not None]
    assert len(of_experts) == sum(2 * module.down_proj.shape[0] for module in experts_of(moe).values())
    assert {block.kind for block in of_experts} == {"mlp"}
    assert {block.share for block in of_experts} == {2 / 5}
    assert len({block.name for block in blocks}) == len(blocks)
    assert tracked_share(moe, blocks) > 0.85  # routers that are no linear maps, norms
    assert f"{tracked_share(moe, blocks):.1%}" in summary(moe, blocks)
    assert "gate_up_proj/0" in block_table(blocks) or "up_proj/0" in block_table(blocks)


def test_gradients_equal_autograd_one_sequence_at_a_time(moe, sequences):
    blocks = tracked_blocks(moe)
    captured = capture(moe, blocks, collate(sequences, range(len(sequences))))
    expected = [true_gradients(moe, blocks, unpadded_loss(moe, example)) for example in sequences]
    for block in blocks:
        rows = torch.stack([gradients[block.module] for gradients in expected])
        assert rows.shape[1:] == block.shape
        assert_close(sequence_gradients(captured, block), rows, 1e-6)
    reached = [b for b in blocks if b.share is not None and captured.gradients[b.module].any()]
    assert len(reached) > 4
    assert any(0 < captured.own_positions[b.module].sum() < captured.positions.sum() for b in reached)


def test_an_expert_sees_the_tokens_that_count_and_no_padding(mixtral, sequences):
    blocks = [block for block in tracked_blocks(mixtral) if block.share is not None]
    together = capture(mixtral, blocks, collate(sequences, range(len(sequences))))
    for row in range(len(sequences)):
        alone = capture(mixtral, blocks, collate(sequences, [row]))
        for block in blocks:
            seen = together.own_positions[block.module][row]
            assert seen.sum() == alone.own_positions[block.module].sum()
            for of_all, of_one in zip(together.block(block), alone.block(block), strict=True):
                assert_close(of_all[row, : seen.sum()], of_one[0, : seen.sum()])
                assert not of_all[row, seen.sum() :, : block.shape[1] - block.bias].any()
    for layer in range(2):
        counts = [together.own_positions[f"model/layers/{layer}/mlp/experts/down_proj/{e}"].sum() for e in range(5)]
        assert sum(counts) == 2 * number_of_positions(sequences)  # each position goes to two


def drawn_tokens(model, examples, seed) -> list[torch.Tensor]:
    tokens = []
    for index, example in enumerate(examples):
        labels = sampled_labels(examples, seed)(model(example.ids[None]).logits, collate(examples, [index]))[0]
        drawn = example.ids.clone()
        drawn[1:][labels[:-1] != IGNORED] = labels[:-1][labels[:-1] != IGNORED]
        tokens.append(drawn)
    return tokens


def test_factors_are_means_over_routed_tokens_and_over_all_sequences(mixtral, sequences):
    """A and S from a loop over tokens and their experts, Λ from gradients of the stored parameters."""
    model, blocks = mixtral, tracked_blocks(mixtral)
    covariances = fit_covariances(model, blocks, sequences, seed=4, batch_tokens=20)
    name = "model.layers.1.mlp.experts"
    experts = model.get_submodule(name)
    moments = {(which, e): [0, 0, 0] for which in ("gate_up_proj", "down_proj") for e in range(5)}
    for example, tokens in zip(sequences, drawn_tokens(model, sequences, (4, _COVARIANCE_STREAM, 0)), strict=True):
        seen = {}

        def hook(_, args, output, seen=seen):
            seen["args"], seen["output"] = args, output

        handle = experts.register_forward_hook(hook)
        (of_output,) = torch.autograd.grad(unpadded_loss(model, example, tokens), seen["output"])
        handle.remove()
        hidden, chosen, weights = (part.detach() for part in seen["args"])
        for t in range(len(example.ids) - 1):
            for expert, weight in zip(chosen[t].tolist(), weights[t], strict=True):
                inner = F.linear(hidden[t], experts.gate_up_proj[expert].detach()).requires_grad_()
                gate, up = inner.chunk(2)
                activated = F.silu(gate) * up
                g = weight * of_output[t]
                (of_inner,) = torch.autograd.grad(F.linear(activated, experts.down_proj[expert].detach()), inner, g)
                for which, a, back in (("gate_up_proj", hidden[t], of_inner), ("down_proj", activated.detach(), g)):
                    moments[which, expert][0] += torch.outer(a, a)
                    moments[which, expert][1] += torch.outer(back, back)
                    moments[which, expert][2] += 1
    assert len({count for *_, count in moments.values()}) > 2
    for (which, expert), (of_a, of_g, count) in moments.items():
        block = f"model/layers/1/mlp/experts/{which}/{expert}"
        assert count > 0
        assert_close(covariances.activation[block], of_a / count)
        assert_close(covariances.gradient[block], of_g / count)
        assert_close(covariances.shares[block] * number_of_positions(sequences), torch.tensor([count]).double())
    assert all("experts" in module for module in covariances.shares)

    basis = compute_eigenbasis(covariances)
    eigenvalues = fit_eigenvalues(model, blocks, sequences, basis, seed=4, batch_tokens=20)
    drawn = drawn_tokens(model, sequences, (4, _EIGENVALUE_STREAM, 0))
    true = [
        true_gradients(model, blocks, unpadded_loss(model, e, tokens))
        for e, tokens in zip(sequences, drawn, strict=True)
    ]
    for block in blocks:
        left, right = basis.gradient[block.name], basis.activation[block.module]
        rotated = [left.T @ gradients[block.module] @ right for gradients in true]
        assert_close(eigenvalues[block.name], torch.stack(rotated).square().mean(0))
    of_kfac = kfac_eigenvalues(basis, blocks, number_of_positions(sequences) / len(sequences))
    for (which, expert), (*_, count) in moments.items():
        block = f"model/layers/1/mlp/experts/{which}/{expert}"
        product = torch.outer(basis.gradient_values[block], basis.activation_values[block])
        assert_close(of_kfac[block], count / len(sequences) * product)


def test_factors_do_not_depend_on_batches(mixtral, sequences):
    blocks = tracked_blocks(mixtral)
    fits = [fit_covariances(mixtral, blocks, sequences, 1, tokens, label_samples=2) for tokens in (1, 20, 1000)]
    bases = [compute_eigenbasis(fits[0])] * 3
    values = [fit_eigenvalues(mixtral, blocks, sequences, bases[0], 1, t, label_samples=2) for t in (1, 20, 1000)]
    for other in (1, 2):
        for field in ("activation", "gradient", "shares"):
            assert_close(dict(getattr(fits[other], field)), dict(getattr(fits[0], field)))
        assert_close(values[other], values[0])


@pytest.mark.parametrize(
    ("family", "options"), [("mixtral", {}), ("gpt_oss", {"num_local_experts": 3}), ("deepseek_v3", {})]
)
def test_two_stage_scores_equal_dense_kronecker_matrices(family, options, sequences):
    stages = [random_examples(8, lengths=[9, 4, 9, 7, 8]), random_examples(9, lengths=[9, 8, 7, 9], prompts=[3, 2, 4])]
    model = build(family, **options)
    chain = Chain([model, fine_tuned(model, seed=1, distance=0.05)], stages, sequences, False)
    expected = dense_scores(chain, 0, 1)
    assert np.isfinite(expected).all()
    assert relative_difference(chain.scores(chain.scaled(0, 1)), expected) < 1e-10
    assert relative_difference(chain.scores(chain.scaled(0, 1)[::-1]), expected) > 1e-3


ATTRIBUTES = {"model_digest": "m", "data_digest": "d", "seed": 0}


@pytest.mark.parametrize("shards", [2, 4])
def test_factors_of_shards_are_those_of_the_whole(tmp_path, mixtral, sequences, shards):
    """A shard may send an expert no token, so that its means weigh nothing."""
    blocks = tracked_blocks(mixtral)
    whole = fit_covariances(mixtral, blocks, sequences, 0, 9)
    wanted = batch_indices(sequences, 9)
    unseen = 0
    for k in range(shards):
        part = sorted(i for batch in wanted[k::shards] for i in batch)
        fit = fit_covariances(mixtral, blocks, sequences, 0, 9, documents=part, double=True)
        unseen += sum(share.item() == 0 for share in fit.shares.values())
        counts = {"sequences": len(part), "positions": number_of_positions(sequences, part), "seconds": 1.0}
        path, kind = tmp_path / f"{k}.h5", shard_kind("covariances", (k + 1, shards))
        with create_factors(path, kind, {**ATTRIBUTES, **counts, "peak_bytes": 1}) as file:
            file.write(fit)
    assert unseen > 0
    gather_factor(tmp_path / "whole.h5", "covariances", [tmp_path / f"{k}.h5" for k in range(shards)], ATTRIBUTES)
    gathered = stored_covariances(tmp_path / "whole.h5")
    for field in ("activation", "gradient", "shares"):
        expected = {name: value.to(getattr(gathered, field)[name]) for name, value in getattr(whole, field).items()}
        torch.testing.assert_close(dict(getattr(gathered, field)), expected, rtol=1e-6, atol=1e-9)
    basis = compute_eigenbasis(gathered)
    with create_factors(tmp_path / "basis.h5", "eigenbasis", ATTRIBUTES) as file:
        file.write(basis)
    assert read_eigenbasis(tmp_path / "basis.h5").shares == gathered.shares


def test_query_gradients_are_kept_compactly_and_grow(tmp_path, mixtral, sequences):
    """An expert's rows are as many as a query sends it; queries that come later may send it more."""
    blocks, path = tracked_blocks(mixtral), tmp_path / "g.h5"
    queries = random_examples(5, lengths=[3, 12, 8, 4])
    for examples, keys in ((queries[:1], "a"), (queries, "abcd")):
        losses = torch.zeros(len(keys)).double()
        with create_query_columns(path, losses, blocks, {"origin": "one"}, list(keys)) as file:
            losses[:] = stream_query_gradients(mixtral, blocks, examples, 1, file.write_part, file.missing)
            file.note({"seconds": 1.0, "peak_bytes": 5.0})
    assert file.missing.tolist() == [1, 2, 3]
    stored, (gradients, losses) = read_query_columns(path), query_gradients(mixtral, blocks, queries, 1)
    torch.testing.assert_close(stored.losses, losses)
    for block in blocks:
        torch.testing.assert_close(stored.of([block])[block.name].formed(), formed(gradients[block.name]))
    tokens = {block.name: stored.columns[block.name].left.shape[1] for block in blocks}
    assert {n for name, n in tokens.items() if "experts" not in name} == {12}
    assert min(tokens.values()) < 8


def test_an_expert_that_no_document_reaches_has_no_part(capsys, sequences):
    """Its factors are zero and its relative damping too; 1/0 would be anywhere in the scores."""
    models = []
    for _ in range(2):
        model = build("mixtral") if not models else fine_tuned(models[0], seed=1, distance=0.05)
        for layer in model.model.layers:
            experts = layer.mlp.experts
            layer.mlp.gate.register_forward_hook(
                lambda _, args, output: (
                    output[0],
                    output[1],
                    torch.where(output[2] == 4, output[2] * 0 + 5, output[2]),
                )
            )
            assert experts.num_experts == 5
        models.append(model)
    stages = [random_examples(8, lengths=[7, 4, 6, 5]), random_examples(9, lengths=[6, 5, 7])]
    chain = Chain(models, stages, sequences, False)
    empty = [block for block in chain.blocks if block.name.endswith("/4") and block.share is not None]
    assert len(empty) == 4
    for inverse in chain.inverses:
        for block in empty:
            assert not inverse.eigenvalues[block.name].any()
            assert inverse.basis.shares[block.module].item() == 0
    relative = [replace(inverse, damping=Damping(relative=0.1), pull=0.0) for inverse in chain.inverses[::-1]]
    columns = apply_chain(chain.queries[1], chain.blocks, relative)
    assert all(values.isfinite().all() for values in columns.values())
    assert not any(columns[block.name].any() for block in empty)
    said = capsys.readouterr().out
    assert f"4 of {len(chain.blocks)} blocks" in said
    assert empty[0].name in said
    absolute = replace(chain.inverses[0], damping=Damping(absolute=0.5), pull=0.0)
    assert (absolute.functions(empty)[empty[0].name] == 2).all()


def test_exact_curvature_products_equal_dense_matrices(mixtral, sequences):
    blocks = [b for b in tracked_blocks(mixtral) if "layers/1/mlp/experts/down_proj" in b.name]
    examples, total = sequences[:2], 0
    for example in examples:
        logits = mixtral(example.ids[None]).logits[0]
        for t in range(example.first_target, len(example.ids)):
            rows = []
            for logit in logits[t - 1]:
                (g,) = torch.autograd.grad(logit, mixtral.model.layers[1].mlp.experts.down_proj, retain_graph=True)
                rows.append(g.flatten())
            jacobian, p = torch.stack(rows), logits[t - 1].detach().softmax(-1)
            total = total + jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    vectors = torch.randn(3, len(total), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(GaussNewton(mixtral, blocks, examples, 20)(vectors), vectors @ total / len(examples), 1e-6)
    assert pack({b.name: torch.zeros(1, *b.shape) for b in blocks}, blocks).shape == (1, len(total))


def test_a_pass_in_bfloat16_leaves_float32(sequences):
    model = build("mixtral").float()
    blocks, batch = tracked_blocks(model), collate(sequences, range(len(sequences)))
    exact, rounded = capture(model, blocks, batch), capture(model.bfloat16(), blocks, batch)
    found, expected = (torch.cat([sequence_gradients(c, b).flatten() for b in blocks]) for c in (rounded, exact))
    assert found.dtype is torch.float32
    assert (found - expected).norm() < 0.3 * expected.norm()


def test_the_plan_counts_what_an_expert_sees(mixtral):
    """Factors of all experts are held, but a token's work is that of those that it is routed to."""
    blocks = tracked_blocks(mixtral)
    shape, budget = shape_of(mixtral, blocks, [20, 30]), budget_of(0, 10_000, 0)
    of_experts = sum(b.shape[0] * b.shape[1] for b in blocks if b.share is not None)
    everywhere = sum(p.numel() for p in mixtral.parameters()) - mixtral.model.embed_tokens.weight.numel()
    assert shape.parameters == int(everywhere - 0.6 * of_experts)
    few = plan_covariances(shape, budget, 1000)
    wide = build("mixtral", num_local_experts=50)
    many = plan_covariances(shape_of(wide, tracked_blocks(wide), [20, 30]), budget, 1000)
    assert many.held_bytes > 5 * few.held_bytes
    assert many.batch_bytes < 1.5 * few.batch_bytes
    names = frozenset(block.name for block in blocks)
    assert plan_scores(shape, budget, 1000, {"q": 3}, [("q", names)]).excess == 0


def test_the_table_of_a_folder_lists_experts(tmp_path, mixtral):
    mixtral.config.save_pretrained(tmp_path)
    command = [sys.executable, "-m", "forebear.gradients.blocks", str(tmp_path)]
    shown = subprocess.run(command, text=True, capture_output=True, check=True).stdout
    assert "model/layers/0/mlp/experts/gate_up_proj/3" in shown
    assert "28 blocks of 28 linear maps" in shown
