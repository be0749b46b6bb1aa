"""Which parameters are tracked: the linear maps inside the transformer layers, as blocks.

A block is a linear map, or some consecutive output rows of one (one head's queries, say).
Its gradient has shape (O, I), the bias being the last column. Embeddings, norms and the
head are not tracked.

`python -m forebear.blocks FOLDER` prints the blocks of a checkpoint, from its config alone.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from forebear.errors import ForebearError
from forebear.gradients.experts import fused_maps, is_fused


@dataclass(frozen=True)
class Block:
    """`rows` are output rows of `module`; `shape` is (O, I), counting a bias as a column of I."""

    name: str  # slash-separated, as the HDF5 group
    module: str  # slash-separated path of the linear map
    kind: str  # "attention" or "mlp"
    rows: slice
    shape: tuple[int, int]
    bias: bool
    share: float | None = None  # of an expert's map: the part of the tokens that it is expected to see

    @property
    def seen(self) -> float:
        """The part of the tokens that it is expected to see."""
        return 1.0 if self.share is None else self.share


def tracked_blocks(model: nn.Module, split_heads: bool = False) -> list[Block]:
    """The blocks of a decoder-only model, in the order of its modules.

    Args:
        split_heads: split the maps that make queries, keys and values by head and role.

    Raises:
        ForebearError: no transformer layers are found, or the layout of their heads is
            not known.
    """
    lists = _transformer_layers(model)
    layout = _head_layout(model.config) if split_heads else None
    blocks: dict[str, Block] = {}
    known: set[tuple[int, int]] = set()  # what one map shares with another is a block of the first
    for prefix, layers in lists.items():
        ancestors: dict[str, nn.Module] = {}
        for path, module in layers.named_modules(prefix=prefix):
            ancestors[path] = module
            kind = _kind(path[len(prefix) + 1 :], path, ancestors)
            if _is_plain(module) and not _is_never_called(path, ancestors):
                if parameters_of(module) in known:
                    continue
                known.add(parameters_of(module))
                found = _blocks_of(path.replace(".", "/"), module, kind, layout, model.config)
            elif is_fused(module):
                found = _blocks_of_experts(path.replace(".", "/"), module, kind, model.config)
            else:
                continue
            blocks |= {block.name: block for block in found}
    if not blocks:
        raise ForebearError(f"{type(model).__name__}: its transformer layers have no plain linear maps to track.")
    return list(blocks.values())


def parameters_of(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """The same for two maps that have weight and bias in common."""
    return id(linear.weight), id(linear.bias)


def _blocks_of(module: str, linear: nn.Linear | Conv1D, kind: str, layout, config: PreTrainedConfig) -> list[Block]:
    bias = linear.bias is not None
    outputs, inputs = _shape(linear)
    parts = layout(module.rpartition("/")[2], config) if layout else {}
    rows_by_name = {f"{module}/{part}": rows for part, rows in parts.items()} or {module: slice(0, outputs)}
    return [
        Block(name, module, kind, rows, (rows.stop - rows.start, inputs + bias), bias)
        for name, rows in rows_by_name.items()
    ]


def _blocks_of_experts(module: str, experts: nn.Module, kind: str, config: PreTrainedConfig) -> list[Block]:
    """Every map of every expert, called `{module}/{parameter}/{expert}`."""
    blocks = []
    for fused in fused_maps(experts):
        share = _share_of_tokens(config, fused.experts)
        for expert in range(fused.experts):
            name, shape = f"{module}/{fused.name}/{expert}", (fused.outputs, fused.inputs + fused.bias)
            blocks.append(Block(name, name, kind, slice(0, fused.outputs), shape, fused.bias, share))
    return blocks


def _share_of_tokens(config: PreTrainedConfig, experts: int) -> float:
    """Of a batch's tokens, those that an expert sees on average; all where the config does not say."""
    text = config.get_text_config(decoder=True)
    chosen = [getattr(text, name, None) for name in _EXPERTS_OF_A_TOKEN]
    known = [number for number in chosen if isinstance(number, int)]
    return min(1.0, known[0] / experts) if known else 1.0


_EXPERTS_OF_A_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_k",
    "top_k_experts",
    "moe_top_k",
)


def _kind(inside: str, path: str, ancestors: Mapping[str, nn.Module]) -> str:
    """What mixes the positions of a sequence counts as attention: state-space and recurrent layers too."""
    if "attention" in inside or "attn" in inside:
        return "attention"
    parts = inside.split(".")
    names = [path[: len(path) - len(inside)] + ".".join(parts[:depth]) for depth in range(2, len(parts))]
    classes = [type(ancestors[name]).__name__ for name in names if name in ancestors]
    mixes = any(word in part for part in parts[1:] for word in ("mamba", "ssm", "temporal_block"))
    return "attention" if mixes or any(_MIXERS.search(name) for name in classes) else "mlp"


_MIXERS = re.compile("Attention|Mixer|DeltaNet|ShortConv|mLSTM|sLSTM|Recurrent.*Block")


def device_of(model: nn.Module, module: str) -> torch.device:
    """Where a tracked map lies; a model's layers may be spread over several devices."""
    found = model
    for part in module.split("/"):
        found = getattr(found, part)
        if isinstance(found, nn.Parameter):
            return found.device
    return found.weight.device


def _transformer_layers(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Path → the lists with one module for each layer; several where a layer's parts lie in lists of their own."""
    depth = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    return _layer_lists(model, _path_of(model, model.get_decoder()) if hasattr(model, "get_decoder") else "", depth)


def _layer_lists(model: nn.Module, decoder: str, depth: int | None) -> dict[str, nn.ModuleList]:
    """The outermost lists inside the decoder that have `depth` modules with maps, else the largest list."""
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = not decoder or name.startswith(f"{decoder}.")
        nested = any(name.startswith(f"{other}.") for other in outermost)
        if isinstance(module, nn.ModuleList) and inside and not nested and _has_maps(module):
            outermost[name] = module
    if found := {name: module for name, module in outermost.items() if len(module) == depth}:
        return found
    if not outermost and decoder:  # what it calls its decoder is something else
        return _layer_lists(model, "", depth)
    if outermost:
        name = max(outermost, key=lambda name: sum(p.numel() for p in outermost[name].parameters()))
        return {name: outermost[name]}
    raise ForebearError(
        f"{type(model).__name__}: found no list of its {depth} transformer layers; only decoder-only models are tracked."
    )


def _is_plain(module: nn.Module) -> bool:
    """Whether a module multiplies with its weight, adds its bias, and does nothing else."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    outputs, inputs = _shape(module)
    vectors = torch.linspace(-1, 1, inputs).to(module.weight)
    try:
        with torch.no_grad():
            found = module(vectors[None, None])
    except (RuntimeError, ValueError, TypeError, IndexError):  # it wants something else than vectors
        return False
    if not isinstance(found, torch.Tensor) or found.shape != (1, 1, outputs):
        return False
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    expected = nn.functional.linear(vectors, weight, module.bias)
    return found.is_meta or torch.allclose(found[0, 0], expected, rtol=1e-2, atol=1e-3)


def _is_never_called(path: str, ancestors: Mapping[str, nn.Module]) -> bool:
    """Whether a map's parent reads its weight, and never runs it as a module."""
    parent, _, name = path.rpartition(".")
    reader = type(ancestors.get(parent)).__name__
    return any(name == of and re.search(pattern, reader) for pattern, of in _READERS)


_READERS = (("Mamba.*Mixer", "dt_proj"), ("LongcatFlash.*Router", "classifier"))  # classes of parents, and the map


def _has_maps(modules: nn.ModuleList) -> bool:
    return any(isinstance(module, nn.Linear | Conv1D) or is_fused(module) for module in modules.modules())


def _path_of(model: nn.Module, part: nn.Module | None) -> str:
    """Where a module is inside a model; empty for the model itself, or what is not inside."""
    return next((name for name, module in model.named_modules() if module is part), "")


def _shape(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """(outputs, inputs). GPT-2's Conv1D stores its weight as [inputs, outputs], which a square one does not show."""
    return (linear.nf, linear.nx) if isinstance(linear, Conv1D) else (linear.out_features, linear.in_features)


# Head layouts: (name of a map inside its layer, config) → its rows by role and head, such as
# "q0"; nothing for a map that makes no queries, keys or values.


def _interleaved_heads(name: str, config: PreTrainedConfig) -> dict[str, slice]:
    """One map; query, key and value of head 0, then of head 1, ..."""
    size = _head_size(config)
    heads = range(config.num_attention_heads if name == "query_key_value" else 0)
    return {f"{role}{h}": _rows(3 * h + r, size) for h in heads for r, role in enumerate("qkv")}


def _concatenated_heads(name: str, config: PreTrainedConfig) -> dict[str, slice]:
    """One map; the queries of all heads, then the keys, then the values."""
    count = config.num_attention_heads
    heads = range(count if name == "c_attn" else 0)
    return {f"{role}{h}": _rows(r * count + h, _head_size(config)) for r, role in enumerate("qkv") for h in heads}


def _separate_heads(name: str, config: PreTrainedConfig) -> dict[str, slice]:
    """Three maps; several heads may share one key and value head."""
    queries = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or queries
    heads = range({"q_proj": queries, "k_proj": shared, "v_proj": shared}.get(name, 0))
    return {f"{name[0]}{h}": _rows(h, _head_size(config)) for h in heads}


def _head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _rows(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)


_HEAD_LAYOUTS: dict[str, Callable[[str, PreTrainedConfig], dict[str, slice]]] = {
    "gpt_neox": _interleaved_heads,
    "bloom": _interleaved_heads,
    "gpt2": _concatenated_heads,
    "opt": _separate_heads,
    "llama": _separate_heads,
    "mistral": _separate_heads,
    "qwen2": _separate_heads,
}


def _head_layout(config: PreTrainedConfig) -> Callable[[str, PreTrainedConfig], dict[str, slice]]:
    if config.model_type not in _HEAD_LAYOUTS:
        raise ForebearError(
            f"split_heads: how {config.model_type} lays out its heads is not known (known: "
            f"{', '.join(_HEAD_LAYOUTS)}); set it to false."
        )
    return _HEAD_LAYOUTS[config.model_type]


def tracked_share(model: nn.Module, blocks: Sequence[Block]) -> float:
    """The part of the parameters in a model's layers that is tracked, between 0 and 1."""
    tracked, total = _counted_parameters(model, blocks)
    return tracked / total


def _counted_parameters(model: nn.Module, blocks: Sequence[Block]) -> tuple[int, int]:
    """Tracked ones, and all in the layers."""
    lists = _transformer_layers(model).values()
    tracked = sum(block.shape[0] * block.shape[1] for block in blocks)
    sizes = {id(parameter): parameter.numel() for layers in lists for parameter in layers.parameters()}
    return tracked, sum(sizes.values())


def summary(model: nn.Module, blocks: Sequence[Block]) -> str:
    """One sentence for logs: how much of a model's layers is tracked."""
    layers = max(_transformer_layers(model).values(), key=len)
    maps = {block.module for block in blocks}
    tracked, total = _counted_parameters(model, blocks)
    return (
        f"{type(model).__name__}: {len(blocks)} blocks of {len(maps)} linear maps are tracked, {tracked:,} of the "
        f"{total:,} parameters ({tracked / total:.1%}) in its {len(layers)} layers."
    )


def factor_elements(blocks: Sequence[Block]) -> list[int]:
    """For every block the numbers that its factors take: Q_S [O, O], Q_A [I, I] and Λ [O, I].

    Blocks of one map share its Q_A, which the first of them counts.
    """
    first = {block.module: block.name for block in reversed(blocks)}
    elements = []
    for block in blocks:
        outputs, inputs = block.shape
        elements.append(outputs**2 + outputs * inputs + (inputs**2 if first[block.module] == block.name else 0))
    return elements


def block_table(blocks: Sequence[Block]) -> str:
    """A line a block: kind, shape, bias, parameters, and its factors' MiB in float32."""
    width = max(len(block.name) for block in blocks)
    lines = [f"{'block':{width}}  kind      {'O':>6}  {'I':>6}  bias  {'parameters':>11}  {'factors MiB':>11}"]
    for block, elements in zip(blocks, factor_elements(blocks), strict=True):
        (outputs, inputs), bias = block.shape, "yes" if block.bias else "no"
        lines.append(
            f"{block.name:{width}}  {block.kind:9} {outputs:6}  {inputs:6}  {bias:4}  {outputs * inputs:11,}"
            f"  {4 * elements / 2**20:11,.2f}"
        )
    return "\n".join(lines)


def _main() -> None:
    parser = argparse.ArgumentParser("python -m forebear.blocks", description="Print a checkpoint's tracked blocks.")
    parser.add_argument("folder", help="a folder with a config.json; no weights are read")
    parser.add_argument("--split-heads", action="store_true", help="as the study's key of this name")
    arguments = parser.parse_args()
    try:
        config = AutoConfig.from_pretrained(arguments.folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        blocks = tracked_blocks(model, arguments.split_heads)
    except (OSError, ValueError, ForebearError) as error:
        parser.exit(1, f"error: {arguments.folder}: {error}\n")
    print(block_table(blocks))
    print(f"\n{summary(model, blocks)} Factors: {4 * sum(factor_elements(blocks)) / 2**20:,.1f} MiB in float32.")


if __name__ == "__main__":
    _main()
