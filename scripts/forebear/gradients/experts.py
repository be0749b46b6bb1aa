"""Mixtures of experts: what each expert's linear maps get and give.

transformers keeps the weights of all experts of a layer in one tensor and lets the way in which they
are run be chosen by name, from a registry that anybody may add to. What is added here runs one expert
after the other, each of its maps on the tokens that were routed to it, so that they can be watched.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from forebear.errors import ForebearError

IMPLEMENTATION = "forebear"

# (experts, name of the weight, which expert, vectors [n, I], its output [n, O], indices of the tokens [n])
# → the output to go on with
Watcher = Callable[[nn.Module, str, int, Tensor, Tensor, Tensor], Tensor]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@dataclass(frozen=True)
class FusedMap:
    """One linear map of every expert of a layer, in one tensor."""

    name: str  # of the parameter
    experts: int
    outputs: int
    inputs: int
    bias: bool


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds the weights of several experts and is run by an implementation that can be chosen."""
    return all(hasattr(module, name) for name in ("has_gate", "is_transposed", "has_bias", "_apply_gate", "down_proj"))


def fused_maps(experts: nn.Module) -> list[FusedMap]:
    """The maps that every expert applies, in their order."""
    names = ["gate_up_proj" if experts.has_gate else "up_proj", "down_proj"]
    maps = []
    for name in names:
        number, rows, columns = getattr(experts, name).shape
        outputs, inputs = (columns, rows) if experts.is_transposed else (rows, columns)
        maps.append(FusedMap(name, number, outputs, inputs, experts.has_bias))
    return maps


def expert_weight(experts: nn.Module, name: str, expert: int) -> tuple[Tensor, Tensor | None]:
    """(weight [O, I], bias [O] or None) of one expert's map."""
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return (weight.T if experts.is_transposed else weight), bias


def fused_experts(model: nn.Module, modules: Iterable[str]) -> dict[str, nn.Module]:
    """Slash-separated path → experts that hold any of these maps, which are called `{path}/{parameter}/{expert}`."""
    paths = {path for module in modules if (path := _experts_path(module))}
    found = {}
    for path in sorted(paths):
        try:
            parent = model.get_submodule(path.replace("/", "."))
        except AttributeError:
            continue
        if is_fused(parent):
            found[path] = parent
    return found


def is_of_experts(module: str, paths: Collection[str]) -> bool:
    """Whether a map is one of the experts at these paths."""
    return _experts_path(module) in paths


def _experts_path(module: str) -> str | None:
    path, *place = module.rsplit("/", 2)
    return path if len(place) == 2 and place[1].isdigit() else None


def _one_by_one(experts: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """What a layer's experts make of N tokens: [N, D] → [N, D], as transformers' own implementations do.

    Args:
        top_k_index: [N, k], the experts of each token; one that does not exist stands for none.
        top_k_weights: [N, k], of the experts' outputs.
    """
    watch = _watcher.get()
    first, second = fused_maps(experts)
    result = torch.zeros_like(hidden_states)
    chosen, weights = top_k_index.flatten(), top_k_weights.flatten()
    numbers, counts = chosen.unique(return_counts=True)
    for expert, indices in zip(numbers.tolist(), chosen.argsort(stable=True).split(counts.tolist()), strict=True):
        if not 0 <= expert < first.experts:
            continue
        tokens = indices // top_k_index.shape[-1]

        def mapped(name: str, vectors: Tensor, expert: int = expert, tokens: Tensor = tokens) -> Tensor:
            weight, bias = expert_weight(experts, name, expert)
            output = F.linear(vectors.to(weight.dtype), weight, bias)
            return output if watch is None else watch(experts, name, expert, vectors, output, tokens)

        inner = mapped(first.name, hidden_states[tokens])
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        output = mapped(second.name, inner)
        if getattr(experts, "has_post_expert_norm", False):
            output = experts.post_expert_norm(output)
        result.index_add_(0, tokens, (output * weights[indices, None]).to(result.dtype))
    return result


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _one_by_one)


@contextmanager
def watched(model: PreTrainedModel, experts: Collection[nn.Module], watch: Watcher) -> Iterator[None]:
    """Run a model's experts one by one, each call of a map going through `watch`, while the block runs.

    Raises:
        ForebearError: the model does not let its experts' implementation be chosen.
    """
    if not experts:
        yield
        return
    before = model.get_experts_implementation()
    token = _watcher.set(watch)
    try:
        model.set_experts_implementation(IMPLEMENTATION)
        if any(module.config._experts_implementation != IMPLEMENTATION for module in experts):
            raise ForebearError(
                f"{type(model).__name__}: its experts cannot be run one by one, so they cannot be tracked; load it "
                "with transformers' own class for its type."
            )
        yield
    finally:
        model.set_experts_implementation(before)
        _watcher.reset(token)
