"""What tests share: tiny float64 language models, random sequences, a finished study, and which tests are slow."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.utils.logging import disable_progress_bar

from copies import copy_workflow, smoke_config, snakemake
from forebear.data.sequences import Example
from forebear.gradients.blocks import Block

torch.set_num_threads(1)
disable_progress_bar()  # a bar for every model that is loaded would hide what a failed test printed

VOCABULARY = 13
SECRET = "hf_a_token_of_the_environment"  # that the finished study was run with
SLOW_FOLDERS = {"workflow", "cluster"}
MIXED = {"test_more_queries.py", "test_shards.py"}  # their slow tests are marked one by one


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of some folders are slow."""
    for item in items:
        if item.path.parent.name in SLOW_FOLDERS and item.path.name not in MIXED:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory) -> Path:
    """The smallest study with a job of every kind, which is run once, also where processes share the tests.

    Tests that change something in it work on a copy.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "finished.lock"):
        if not (folder / "finished").exists():
            run = snakemake(copy_workflow(folder / "running", smoke_config()), HF_TOKEN=SECRET)
            assert run.returncode == 0, run.stdout
            (folder / "running").rename(folder / "finished")
    return folder / "finished"


def tiny_model(seed: int, layers: int = 2, attention_bias: bool = True) -> GPTNeoXForCausalLM:
    """A GPT-NeoX whose weights, biases and norms are far from their initial values.

    Activations and gradients are then anisotropic, and no two dimensions of a block agree.
    """
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        rotary_pct=0.5,
        attention_bias=attention_bias,
    )
    model = GPTNeoXForCausalLM(config).double().eval()
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, std: float) -> Tensor:
        return std * torch.randn(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(normal(module.weight, 0.3))
                module.bias.add_(normal(module.bias, 0.3))
            elif isinstance(module, nn.Linear):
                module.weight.copy_(normal(module.weight, 0.4))
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias, 0.3))
            elif isinstance(module, nn.Embedding):
                module.weight.copy_(normal(module.weight, 1.0))
    return model


def fine_tuned(model: GPTNeoXForCausalLM, seed: int, distance: float = 0.15) -> GPTNeoXForCausalLM:
    """The same architecture at nearby parameters, as a next stage would leave them."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(distance * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def random_examples(seed: int, lengths: Sequence[int], prompts: Sequence[int] = ()) -> list[Example]:
    """Sequences of the given lengths; `prompts` are the first targets, 1 where it runs out."""
    generator = torch.Generator().manual_seed(seed)
    first_targets = [*prompts, *[1] * (len(lengths) - len(prompts))]
    return [
        Example(torch.randint(VOCABULARY, (length,), generator=generator), first_target)
        for length, first_target in zip(lengths, first_targets, strict=True)
    ]


def block_gradient(block: Block, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[O, I] from the gradients of a map's parameters, the bias being the last column."""
    whole = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    return whole[block.rows]


def parameters_of(model: nn.Module, blocks: Sequence[Block]) -> dict[tuple[str, str], Tensor]:
    """(module, "weight" or "bias") → parameter, for the modules of the blocks."""
    return {
        (block.module, name): parameter
        for block in blocks
        for name, parameter in model.get_submodule(block.module.replace("/", ".")).named_parameters()
    }


def parameter_gradients(model: nn.Module, blocks: Sequence[Block], scalar: Tensor) -> dict[str, Tensor]:
    """block → [O, I], by reverse-mode differentiation of a scalar with respect to the parameters."""
    parameters = parameters_of(model, blocks)
    gradients = torch.autograd.grad(scalar, list(parameters.values()), retain_graph=True)
    named = dict(zip(parameters, gradients, strict=True))
    return {b.name: block_gradient(b, named[b.module, "weight"], named.get((b.module, "bias"))) for b in blocks}


def unpadded_loss(model: nn.Module, example: Example, tokens: Tensor | None = None) -> Tensor:
    """Summed cross-entropy of one sequence's targets; `tokens` [T] replaces what has to be predicted."""
    tokens = example.ids if tokens is None else tokens
    log_probabilities = model(example.ids[None]).logits[0].log_softmax(-1)
    return -sum(log_probabilities[t - 1, tokens[t]] for t in range(example.first_target, len(example.ids)))


@pytest.fixture(scope="session")
def model():
    return tiny_model(seed=0)


@pytest.fixture(scope="session")
def models(model):
    """The models of three consecutive stages."""
    second = fine_tuned(model, seed=1)
    return [model, second, fine_tuned(second, seed=2)]


@pytest.fixture(scope="session")
def examples():
    """Sequences of mixed lengths in no order, three of them with prompts."""
    return random_examples(3, lengths=[6, 2, 9, 5, 7, 3, 8, 4], prompts=[3, 1, 6, 4])


@pytest.fixture(scope="session")
def stage_examples():
    """Documents of three stages; later stages have prompts."""
    return [
        random_examples(4, lengths=[7, 4, 9, 6, 8, 5, 3, 9, 6, 7]),
        random_examples(5, lengths=[6, 8, 5, 7, 9, 4, 6, 8], prompts=[3, 4, 2, 5, 6, 2, 3, 4]),
        random_examples(6, lengths=[5, 7, 8, 6, 9, 7], prompts=[2, 3, 5, 4, 3, 6]),
    ]


@pytest.fixture(scope="session")
def queries():
    return random_examples(7, lengths=[5, 8, 6], prompts=[3, 6, 4])
