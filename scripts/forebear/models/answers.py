"""What a model answers: greedy continuations of prompts, or classes of texts, judged by exact match."""

from collections import Counter
from collections.abc import Container, Sequence
from itertools import takewhile

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forebear.data.chat import DEFAULT_CHAT, Chat
from forebear.data.sequences import Example, print_notes, stream
from forebear.models.heads import classes_by_label, is_classifier, position_logits
from forebear.models.losses import evaluate_losses
from forebear.runtime.progress import progress

SLACK = 8  # tokens that an answer may be longer than the reference


@torch.no_grad()
def answer_queries(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    queries: Sequence[dict],
    max_length: int,
    chat: Chat = DEFAULT_CHAT,
) -> list[dict]:
    """For every query: `id`, the model's `answer`, whether it is `correct`, its `loss`, and its `rank`.

    The rank, from 1, is that of the reference's first token (or class) among all. The loss is the summed cross-entropy of the reference answer, in nats. An answer is
    correct if its tokens up to the end-of-sequence token, or its class, are the reference's; in
    a chat, where the end of a turn ends it, if its words are.
    """
    encoded = list(stream(queries, tokenizer, max_length, False, classes_by_label(model), chat))
    print_notes(Counter(note for one in encoded for note in one.happened), len(encoded), max_length)
    examples = [one.example for one in encoded]
    answers = []
    for query, (example, turn_end), loss in zip(
        progress(queries, "answers", "query"),
        [(one.example, one.end) for one in encoded],
        evaluate_losses(model, examples).tolist(),
        strict=True,
    ):
        if is_classifier(model):
            text, correct = _label(model, example)
        else:
            text, correct = _continuation(model, tokenizer, example, turn_end)
        judged = {"correct": correct, "loss": loss, "rank": _rank(model, example)}
        answers.append({"id": query["id"], "answer": text or "(nothing)", **judged})
    return answers


def _rank(model: PreTrainedModel, example: Example) -> int:
    """How many tokens (or classes) are likelier than the first that is right, and one."""
    logits = position_logits(model, example.ids[None].to(model.device))[0]
    if example.label is not None:
        position, target = -1, example.label
    else:
        position, target = example.first_target - 1, example.ids[example.first_target]
    return int((logits[position] > logits[position, target]).sum()) + 1


def _label(model: PreTrainedModel, example: Example) -> tuple[str, bool]:
    """The likeliest class, and whether it is the right one."""
    chosen = position_logits(model, example.ids[None].to(model.device))[0, -1].argmax().item()
    return model.config.id2label[chosen], chosen == example.label


def _continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Example, turn_end: int | None
) -> tuple[str, bool]:
    """The greedy answer to a prompt, and whether it is the reference.

    Args:
        turn_end: the token that ends a turn of a chat, beside the end of the sequence; None for other queries.
    """
    prompt, reference = example.ids[: example.first_target], example.ids[example.first_target :]
    longest = getattr(model.config, "max_position_embeddings", None) or len(example.ids) + SLACK
    ends = {token for token in (tokenizer.eos_token_id, turn_end) if token is not None}
    generated = model.generate(
        prompt[None].to(model.device),
        attention_mask=torch.ones_like(prompt)[None].to(model.device),
        max_new_tokens=min(len(reference) + SLACK, longest - len(prompt)),
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id or 0,
        eos_token_id=sorted(ends) or None,
    )[0, len(prompt) :].cpu()
    answer, wanted = _until(generated.tolist(), ends), _until(reference.tolist(), ends)
    text = tokenizer.decode(answer)
    same_words = turn_end is not None and text.strip() == tokenizer.decode(wanted).strip()
    return text, answer == wanted or same_words


def _until(tokens: list[int], ends: Container[int]) -> list[int]:
    """The tokens before the first that ends them."""
    return list(takewhile(lambda token: token not in ends, tokens))
