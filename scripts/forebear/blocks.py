"""Which parameters are tracked: the linear maps inside the transformer layers, as blocks.

A block is a linear map, or some consecutive output rows of one (one head's queries, say).
Its gradient has shape (O, I), the bias being the last column. Embeddings, norms and the
head are not tracked.

`python -m forebear.blocks FOLDER` prints the blocks of a checkpoint, from its config alone.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from forebear.errors import ForebearError


@dataclass(frozen=True)
class Block:
    """`rows` are output rows of `module`; `shape` is (O, I), counting a bias as a column of I."""

    name: str  # slash-separated, as the HDF5 group
    module: str  # slash-separated path of the linear map
    kind: str  # "attention" or "mlp"
    rows: slice
    shape: tuple[int, int]
    bias: bool


def tracked_blocks(model: nn.Module, split_heads: bool = False) -> list[Block]:
    """The blocks of a decoder-only model, in the order of its modules.

    Args:
        split_heads: split the maps that make queries, keys and values by head and role.

    Raises:
        ForebearError: no transformer layers are found, or the layout of their heads is
            not known.
    """
    prefix, layers = _transformer_layers(model)
    layout = _head_layout(model.config) if split_heads else None
    blocks: list[Block] = []
    for path, linear in layers.named_modules():
        if not isinstance(linear, nn.Linear | Conv1D):
            continue
        module = f"{prefix}.{path}".replace(".", "/")
        bias = linear.bias is not None
        kind = "attention" if "attention" in path or "attn" in path else "mlp"
        outputs, inputs = _shape(linear)
        parts = layout(path.rpartition(".")[2], model.config) if layout else {}
        rows_by_name = {f"{module}/{part}": rows for part, rows in parts.items()} or {module: slice(0, outputs)}
        blocks += [
            Block(name, module, kind, rows, (rows.stop - rows.start, inputs + bias), bias)
            for name, rows in rows_by_name.items()
        ]
    if not blocks:
        raise ForebearError(f"{type(model).__name__}: its transformer layers have no plain linear maps to track.")
    return blocks


def device_of(model: nn.Module, module: str) -> torch.device:
    """Where a tracked map lies; a model's layers may be spread over several devices."""
    return model.get_submodule(module.replace("/", ".")).weight.device


def _transformer_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    depth = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ForebearError(
        f"{type(model).__name__}: found no list of its {depth} transformer layers; only decoder-only models are tracked."
    )


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


def _rows(place: int, size: int) -> slice:
    return slice(place * size, (place + 1) * size)


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
    _, layers = _transformer_layers(model)
    tracked = sum(block.shape[0] * block.shape[1] for block in blocks)
    return tracked, sum(parameter.numel() for parameter in layers.parameters())


def summary(model: nn.Module, blocks: Sequence[Block]) -> str:
    """One sentence for logs: how much of a model's layers is tracked."""
    _, layers = _transformer_layers(model)
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
