"""What a stage is trained to do: predict tokens, or the class of a sequence.

A stage that classifies replaces the language model's head by a new one on the same base
model, so its tracked blocks keep their names. A class is predicted from the last token;
until there, a classifier's logits are like a language model's: one vector a position.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from forebear.errors import ForebearError


def runs_own_code(model: PreTrainedModel) -> bool:
    """Whether a model's class is Python code that came with its checkpoint."""
    return type(model).__module__.partition(".")[0] == "transformers_modules"


def is_classifier(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith("ForSequenceClassification")


def classes_by_label(model: PreTrainedModel) -> dict[str, int] | None:
    """A classifier's labels; None for a language model."""
    return dict(model.config.label2id) if is_classifier(model) else None


def position_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits at every position of [B, T] tokens: [B, T, V] over tokens, or [B, T, C] over classes.

    Raises:
        ForebearError: a token has no row in the embedding.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if (most := int(ids.max())) >= rows:
        raise ForebearError(
            f"the data has the token {most}, but the model's embedding has {rows} rows (counted from 0): the tokenizer "
            "knows tokens that the model does not; take the tokenizer that belongs to the model, or resize the embedding "
            "(`resize_token_embeddings`) and save both."
        )
    if is_classifier(model):
        return model.score(model.base_model(ids, use_cache=False).last_hidden_state)
    return model(ids, use_cache=False).logits


def with_head(model: PreTrainedModel, task: str, labels: Sequence[str], seed: int) -> PreTrainedModel:
    """The model itself if its head does the task, else a classifier with a fresh head on its base.

    Args:
        labels: of the classes; ignored for language modelling.
        seed: of the fresh head.

    Raises:
        ForebearError: fewer than two classes, a classifier whose head would have to be
            replaced once more, or a model of its own code.
    """
    if task == "language_modelling":
        if is_classifier(model):
            raise ForebearError("a stage of language modelling cannot follow a classification; change `task`.")
        return model
    if len(labels) < 2:
        raise ForebearError(f"a classification needs at least two labels, its documents have {list(labels)}.")
    if is_classifier(model):
        if list(model.config.label2id) != list(labels):
            raise ForebearError(
                f"the stage's labels are {', '.join(labels)}, but the classifier before it knows "
                f"{', '.join(model.config.label2id)}; give both stages the same labels."
            )
        return model
    if runs_own_code(model):
        raise ForebearError(
            f"{type(model).__name__} is Python code of the model's own, which has no classifier on the same base; "
            "give the stage a `checkpoint` that is a classifier."
        )
    config = copy.deepcopy(model.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: k for k, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = AutoModelForSequenceClassification.from_config(config)
    classifier = classifier.to(model.device, model.dtype)
    classifier.base_model.load_state_dict(model.base_model.state_dict())
    return classifier.train(model.training)
