"""Which parameters are tracked: the linear maps inside the transformer layers, as blocks.

A block is a linear map, or some consecutive output rows of one (one head's queries, say).
Its gradient has shape (O, I), the bias being the last column. Embeddings, norms and the
head are not tracked.
"""

from dataclasses import dataclass

from torch import nn

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
        split_heads: split fused query-key-value maps by head and role.

    Raises:
        ForebearError: no transformer layers are found, or the layout of their heads is
            not known.
    """
    prefix, layers = _transformer_layers(model)
    blocks: list[Block] = []
    for path, linear in layers.named_modules():
        if not isinstance(linear, nn.Linear):
            continue
        module = f"{prefix}.{path}".replace(".", "/")
        bias = linear.bias is not None
        kind = "attention" if "attention" in path or "attn" in path else "mlp"
        rows_by_name = {module: slice(0, linear.out_features)}
        if split_heads and linear.out_features == 3 * linear.in_features and kind == "attention":
            rows_by_name = {f"{module}/{role}": rows for role, rows in _head_rows(model).items()}
        blocks += [
            Block(name, module, kind, rows, (rows.stop - rows.start, linear.in_features + bias), bias)
            for name, rows in rows_by_name.items()
        ]
    return blocks


def _transformer_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    depth = model.config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return name, module
    raise ForebearError(
        f"{type(model).__name__}: found no list of its {depth} transformer layers; only decoder-only models are tracked."
    )


def _head_rows(model: nn.Module) -> dict[str, slice]:
    """Rows of a fused query-key-value map, by role and head."""
    if model.config.model_type != "gpt_neox":
        raise ForebearError(
            f"split_heads: the layout of {model.config.model_type}'s fused attention map is not known; set it to false."
        )
    # GPT-NeoX interleaves by head: query, key and value of head 0, then of head 1, ...
    heads = model.config.num_attention_heads
    size = model.config.hidden_size // heads
    starts = {f"{role}{head}": (3 * head + r) * size for head in range(heads) for r, role in enumerate("qkv")}
    return {name: slice(start, start + size) for name, start in starts.items()}
