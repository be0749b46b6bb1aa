"""Every family of causal language models that transformers has, made tiny: compared, or refused with a reason.

A family that a new version of transformers adds is tried by itself, by the names of its options.
"""

import re

import pytest
import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from dense_gradients import sequence_gradients
from forebear.data.batches import collate
from forebear.data.sequences import Example
from forebear.errors import ForebearError
from forebear.gradients.blocks import Block, block_table, factor_elements, summary, tracked_blocks, tracked_share
from forebear.gradients.capture import capture
from forebear.gradients.gate import check_model
from forebear.planning.budget import shape_of
from tiny_families import MASKED, OPTIONS, tiny_model

NOT_CAUSAL = "changes with the tokens after it"
REFUSED = {
    "cpmant": "changes when padding follows",  # tokens of its own stand before the sequence
    "gemma4_assistant": "cannot be run on tokens alone",  # it drafts for another model, whose states it reads
    "gemma4_unified_assistant": "cannot be run on tokens alone",
    "prophetnet": "changes when padding follows",  # it predicts several tokens at once
    "reformer": "not one of its tracked maps has a gradient",  # reversible layers hide their graph
    "xlm": NOT_CAUSAL,
    "xlnet": NOT_CAUSAL,
    "zaya": "saw a tensor of shape",  # half of the values are of the position before
}
# What cannot be made at all, with what transformers says.
UNBUILT = {
    "dots3_note": "per_layer_config",  # its text model is a family of its own
    "gemma3n": "timm",  # a library for its images
    "musicgen": "dropout",  # its own configuration is not that of a causal model
    "musicgen_melody": "dropout",
}
SINGLE = {"xglm", "inkling2_text", "inkling2_loop_text"}  # that do not run in float64


def dtype_of(family: str) -> torch.dtype:
    return torch.float32 if family in SINGLE else torch.float64


def sequences(model) -> list[Example]:
    tokens = min(model.get_input_embeddings().weight.shape[0], 40)
    generator = torch.Generator().manual_seed(3)
    return [Example(torch.randint(3, tokens, (n,), generator=generator), first) for n, first in ((5, 1), (8, 3))]


def stored(model: nn.Module, block: Block) -> tuple[nn.Module, str, int | None]:
    """(module, parameter, expert) of a block's weight."""
    path = block.module.replace("/", ".")
    if block.share is None:
        return model.get_submodule(path), "weight", None
    parent, name, expert = path.rsplit(".", 2)
    return model.get_submodule(parent), name, int(expert)


def true_gradients(model: nn.Module, blocks: list[Block], example: Example) -> dict[str, torch.Tensor]:
    """module → [O, I] without the bias, by automatic differentiation of one sequence alone."""
    places = {block.module: stored(model, block) for block in blocks}
    weights = {id(w): w for module, name, _ in places.values() for w in [getattr(module, name)]}
    log_probabilities = model(example.ids[None], use_cache=False).logits[0].log_softmax(-1)
    loss = -sum(log_probabilities[t - 1, example.ids[t]] for t in range(example.first_target, len(example.ids)))
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    found = {key: torch.zeros_like(weights[key]) if g is None else g for key, g in zip(weights, found, strict=True)}
    result = {}
    for path, (module, name, expert) in places.items():
        gradient = found[id(getattr(module, name))]
        gradient = gradient if expert is None else gradient[expert]
        turned = isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
        result[path] = gradient.T if turned else gradient
    return result


def assert_gradients_are_autograds(model: nn.Module) -> None:
    blocks, examples = tracked_blocks(model), sequences(model)
    check_model(model, blocks)
    captured = capture(model, blocks, collate(examples, range(len(examples))))
    expected = [true_gradients(model, blocks, example) for example in examples]
    tolerance = 1e-3 if model.dtype is torch.float32 else 1e-5  # many norms and routers are in float32
    largest = max(gradient.norm().item() for gradients in expected for gradient in gradients.values())
    assert largest > 1e-6
    for block in blocks:
        rows = torch.stack([gradients[block.module] for gradients in expected])
        found = sequence_gradients(captured, block)[..., : rows.shape[2]]
        assert found.shape == rows.shape
        difference = (found - rows).norm().item()
        assert difference <= tolerance * max(rows.norm().item(), 1e-6 * largest), block.name


@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_gradients_are_those_of_autograd_or_the_family_is_refused(family):
    if family in UNBUILT:
        with pytest.raises((ImportError, AttributeError, ValueError), match=UNBUILT[family]):
            tiny_model(family)
        return
    model = tiny_model(family, dtype_of(family))
    if family in REFUSED:
        with pytest.raises(ForebearError, match=REFUSED[family]):
            check_model(model, tracked_blocks(model))
        return
    assert_gradients_are_autograds(model)
    blocks = tracked_blocks(model)
    assert {block.kind for block in blocks} <= {"attention", "mlp"}
    assert 0 < tracked_share(model, blocks) <= 1
    assert len(factor_elements(blocks)) == len(block_table(blocks).splitlines()) - 1
    assert shape_of(model, blocks, [5, 8]).parameters > 0
    assert type(model).__name__ in summary(model, blocks)


@pytest.mark.parametrize("family", MASKED)
def test_a_masked_language_model_is_refused(family):
    """These are compared above as decoders, which their configuration does not say by itself."""
    model = tiny_model(family, **{**OPTIONS[family], "is_decoder": False})
    with pytest.raises(ForebearError, match=NOT_CAUSAL) as refusal:
        check_model(model, tracked_blocks(model))
    assert re.search("take a causal one, or set `is_decoder` to true", str(refusal.value))
