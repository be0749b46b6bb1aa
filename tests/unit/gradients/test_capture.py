"""Per-sequence gradients from activations and output gradients are those of autograd, one sequence at a time."""

import copy

import pytest
import torch

from conftest import VOCABULARY, parameter_gradients, random_examples, tiny_model, unpadded_loss
from dense_gradients import sequence_gradients
from forebear.data.batches import IGNORED, batches, collate
from forebear.gradients.blocks import tracked_blocks
from forebear.gradients.capture import capture, sampled_labels
from forebear.gradients.outer_products import formed
from forebear.queries.gradients import query_gradients


def assert_close(actual, expected, tolerance=1e-11):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def autograd_loop(model, blocks, examples):
    gradients = [parameter_gradients(model, blocks, unpadded_loss(model, example)) for example in examples]
    return {block.name: torch.stack([g[block.name] for g in gradients]) for block in blocks}


@pytest.mark.parametrize("split_heads", [False, True])
def test_gradients_equal_autograd_one_sequence_at_a_time(model, examples, split_heads):
    blocks = tracked_blocks(model, split_heads)
    expected = autograd_loop(model, blocks, examples)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    for block in blocks:
        gradients = sequence_gradients(captured, block)
        assert gradients.shape[1:] == block.shape
        assert expected[block.name].abs().max() > 1e-3
        assert_close(gradients, expected[block.name])


def test_blocks_without_bias_have_no_bias_column(examples):
    model = tiny_model(seed=8, attention_bias=False)
    blocks = tracked_blocks(model)
    expected = autograd_loop(model, blocks, examples)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    assert {block.bias for block in blocks} == {True, False}
    for block in blocks:
        assert_close(sequence_gradients(captured, block), expected[block.name])


def test_split_heads_partition_the_fused_map(model, examples):
    batch = collate(examples, range(len(examples)))
    fused = tracked_blocks(model)[0]
    parts = [block for block in tracked_blocks(model, split_heads=True) if block.module == fused.module]
    captured = capture(model, [fused], batch)
    assert len(parts) == 3 * model.config.num_attention_heads
    by_rows = sorted(parts, key=lambda block: block.rows.start)
    assert_close(torch.cat([sequence_gradients(captured, b) for b in by_rows], 1), sequence_gradients(captured, fused))


def test_losses_are_summed_over_targets_only(model, examples):
    captured = capture(model, tracked_blocks(model), collate(examples, range(len(examples))))
    assert_close(captured.losses, torch.stack([unpadded_loss(model, e) for e in examples]).detach())


@pytest.mark.parametrize("batch_tokens", [1, 20, 10_000])
def test_query_gradients_keep_the_order_of_the_data_set(model, examples, batch_tokens):
    blocks = tracked_blocks(model)
    gradients, losses = query_gradients(model, blocks, examples, batch_tokens)
    for name, expected in autograd_loop(model, blocks, examples).items():
        assert_close(formed(gradients[name]), expected)
    assert_close(losses, torch.stack([unpadded_loss(model, e) for e in examples]).detach())


def test_last_position_and_padding_are_left_out(model, examples):
    blocks = tracked_blocks(model)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    for block in blocks:
        activations, gradients = captured.block(block)
        for row, example in enumerate(examples):
            last = len(example.ids) - 1
            assert captured.positions[row, :last].all()
            assert not captured.positions[row, last:].any()
            assert not gradients[row, last:].any()
            if block.bias:
                assert (activations[row, :last, -1] == 1).all()


def test_prompt_positions_carry_gradient(model, examples):
    """The loss on the answer reaches the prompt through attention, below the last layer."""
    blocks = tracked_blocks(model)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    _, gradients = captured.block(blocks[0])
    with_prompts = [row for row, example in enumerate(examples) if example.first_target > 2]
    assert with_prompts
    for row in with_prompts:
        assert gradients[row, : examples[row].first_target - 1].any(-1).all()


def shifted_by_one(labels):
    """Labels of the same draw, given to the position before."""

    def draw(logits, batch):
        drawn = labels(logits, batch)
        moved = drawn.roll(-1, dims=1)
        return torch.where((batch.labels != IGNORED) & (moved != IGNORED), moved, drawn)

    return draw


def excess_of_mean(model, example, wrap=lambda labels: labels, draws=600):
    """‖mean gradient‖² relative to what independent gradients of mean zero would leave of it: about 1."""
    copies = [example] * draws
    blocks = tracked_blocks(model)
    captured = capture(model, blocks, collate(copies, range(draws)), wrap(sampled_labels(copies, (0, 0, 0))))
    gradients = torch.cat([sequence_gradients(captured, block).flatten(1) for block in blocks], 1)
    return (draws * gradients.mean(0).square().sum() / gradients.square().sum(1).mean()).item()


def test_sampled_labels_belong_to_their_own_logits(model):
    """Gradients have mean zero under sampling; labels shifted by one position have not."""
    for example in random_examples(9, lengths=[6, 8], prompts=[1, 4]):
        assert excess_of_mean(model, example) < 2
        assert excess_of_mean(model, example, shifted_by_one) > 20


def test_sampled_labels_follow_the_model(model):
    (example,) = random_examples(10, lengths=[4])
    copies = [example] * 4000
    logits = model(example.ids[None]).logits.detach()
    batch = collate(copies, range(len(copies)))
    labels = sampled_labels(copies, (5, 0))(logits.expand(len(copies), -1, -1), batch)
    assert (labels[:, -1] == IGNORED).all()
    for t in range(3):
        frequencies = labels[:, t].bincount(minlength=VOCABULARY) / len(copies)
        assert_close(frequencies.double(), logits[0, t].softmax(-1), tolerance=0.03)


def test_sampled_labels_of_different_positions_are_independent(model):
    copies = random_examples(10, lengths=[5]) * 4000
    logits = torch.zeros(len(copies), 5, VOCABULARY)
    labels = sampled_labels(copies, (6,))(logits, collate(copies, range(len(copies))))[:, :4].double()
    correlations = torch.corrcoef(labels.T) - torch.eye(4)
    assert correlations.abs().max() < 0.06


def test_sampled_labels_do_not_depend_on_batching_or_order(model, examples):
    def labels_by_index(batched):
        draw, by_index = sampled_labels(examples, (1, 2, 3)), {}
        for batch in batched:
            labels = draw(model(batch.ids).logits, batch)
            for row, index in enumerate(batch.indices.tolist()):
                by_index[index] = labels[row, : len(examples[index].ids)].tolist()
                assert (labels[row, len(examples[index].ids) :] == IGNORED).all()
        return by_index

    together = labels_by_index(batches(examples, 10_000))
    assert together == labels_by_index(batches(examples, 1))
    assert together == labels_by_index([collate(examples, list(reversed(range(len(examples)))))])
    for index, example in enumerate(examples):
        of_targets = [label != IGNORED for label in together[index]]
        assert of_targets == [example.first_target <= t + 1 < len(example.ids) for t in range(len(example.ids))]


def test_sampled_labels_depend_on_the_seed(model, examples):
    batch = collate(examples, range(len(examples)))
    logits = model(batch.ids).logits
    assert torch.equal(sampled_labels(examples, (0, 1))(logits, batch), sampled_labels(examples, (0, 1))(logits, batch))
    assert not torch.equal(
        sampled_labels(examples, (0, 1))(logits, batch), sampled_labels(examples, (0, 2))(logits, batch)
    )


def test_two_calls_are_bit_identical(model, examples):
    blocks, batch = tracked_blocks(model), collate(examples, range(len(examples)))
    first, second = (capture(model, blocks, batch, sampled_labels(examples, (0,))) for _ in range(2))
    assert torch.equal(first.losses, second.losses)
    for block in blocks:
        assert torch.equal(sequence_gradients(first, block), sequence_gradients(second, block))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_is_left_as_it_was(model, examples, frozen):
    model = copy.deepcopy(model).requires_grad_(not frozen)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    capture(model, tracked_blocks(model), collate(examples, [0, 1]))
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad is not frozen
        assert torch.equal(parameter, before[name])
    assert not any(module._forward_hooks for module in model.modules())


def test_capture_works_where_gradients_are_disabled(model, examples):
    blocks, batch = tracked_blocks(model), collate(examples, [0, 1])
    expected = capture(model, blocks, batch)
    with torch.no_grad():
        captured = capture(model, blocks, batch)
    for block in blocks:
        assert torch.equal(sequence_gradients(captured, block), sequence_gradients(expected, block))


def test_hooks_are_removed_after_an_error(model, examples):
    def no_labels(logits, batch):
        raise RuntimeError("no labels")

    with pytest.raises(RuntimeError, match="no labels"):
        capture(model, tracked_blocks(model), collate(examples, [0]), no_labels)
    assert not any(module._forward_hooks for module in model.modules())
