"""The checkpoints of a chain: how much of each is tracked, and whether one can have come from the one before."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from forebear.errors import ForebearError
from forebear.gradients.blocks import summary, tracked_blocks, tracked_share
from forebear.gradients.tracked import tracked_warnings
from forebear.models.checkpoints import load_tokenizer, model_without_weights
from forebear.runtime.job import warn


def describe_stage(stage: str, directory: Path, trust_remote_code: bool = False) -> float:
    """Say in the log how much of a stage's model is tracked, by its config, and warn of too little; returns the share."""
    model = model_without_weights(directory, trust_remote_code)
    blocks = tracked_blocks(model)
    share = tracked_share(model, blocks)
    print(f"{stage}: {summary(model, blocks)}")
    for sentence in tracked_warnings({stage: share}):
        warn(sentence)
    return share


def check_lineage(stage: str, directory: Path, previous: Path, trust_remote_code: bool = False) -> None:
    """Refuse a checkpoint that cannot have come from the one before: each tracked map must be there, in its shape.

    Heads are compared too: the same maps in other heads are another function. Another vocabulary is none of this
    and is said, since it may be an extension or a mistake.

    Raises:
        ForebearError: naming both shapes.
    """
    models = [model_without_weights(folder, trust_remote_code) for folder in (directory, previous)]
    shapes, before = ({block.name: block.shape for block in tracked_blocks(model)} for model in models)
    if shapes != before or _heads(models[0]) != _heads(models[1]):
        raise ForebearError(
            f"{stage}: its checkpoint has {_described(models[0])}, and that of the stage before has "
            f"{_described(models[1])}{_first_difference(shapes, before)}; a chain is one model at several times, so give "
            "checkpoints that were trained from one another."
        )
    vocabularies = [load_tokenizer(folder, trust_remote_code).get_vocab() for folder in (directory, previous)]
    if vocabularies[0] != vocabularies[1]:
        print(
            f"{stage}: its tokenizer has {len(vocabularies[0])} tokens, that of the stage before {len(vocabularies[1])}"
        )


def _heads(model: PreTrainedModel) -> tuple:
    return tuple(getattr(model.config, key, None) for key in ("num_attention_heads", "num_key_value_heads"))


def _described(model: PreTrainedModel) -> str:
    config = model.config
    return (
        f"{getattr(config, 'num_hidden_layers', '?')} layers of width {getattr(config, 'hidden_size', '?')} with "
        f"{getattr(config, 'num_attention_heads', '?')} heads ({config.model_type})"
    )


def _first_difference(shapes: Mapping[str, tuple], before: Mapping[str, tuple]) -> str:
    for name in [*shapes, *before]:
        if shapes.get(name) != before.get(name):
            here, there = (" × ".join(map(str, found[name])) if name in found else "none" for found in (shapes, before))
            return f": {name} is {here} here and {there} there"
    return ""
