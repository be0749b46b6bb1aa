"""What a model answers: greedy continuations of prompts, or classes of texts, judged by exact match."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forebear.heads import classes_by_label, is_classifier, position_logits
from forebear.progress import progress
from forebear.sequences import Example, encode
from forebear.training import evaluate_losses

SLACK = 8  # tokens that an answer may be longer than the reference


@torch.no_grad()
def answer_queries(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: Sequence[dict], max_length: int
) -> list[dict]:
    """For every query: `id`, the model's `answer`, whether it is `correct`, its `loss`, and its `rank`.

    The rank, from 1, is that of the reference's first token (or class) among all. The loss is the summed cross-entropy of the reference answer, in nats. An answer is
    correct if its tokens up to the end-of-sequence token, or its class, are the reference's.
    """
    examples = encode(queries, tokenizer, max_length, end=False, classes=classes_by_label(model))
    answer = _label if is_classifier(model) else _continuation
    answers = []
    for query, example, loss in zip(
        progress(queries, "answers", "query"), examples, evaluate_losses(model, examples).tolist(), strict=True
    ):
        text, correct = answer(model, tokenizer, example)
        judged = {"correct": correct, "loss": loss, "rank": _rank(model, example)}
        answers.append({"id": query["id"], "answer": text or "(nothing)", **judged})
    return answers


def _rank(model: PreTrainedModel, example: Example) -> int:
    """How many tokens (or classes) are likelier than the first that is right, and one."""
    logits = position_logits(model, example.ids[None].to(model.device))[0]
    if example.label is not None:
        place, target = -1, example.label
    else:
        place, target = example.first_target - 1, example.ids[example.first_target]
    return int((logits[place] > logits[place, target]).sum()) + 1


def _label(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[str, bool]:
    """The likeliest class, and whether it is the right one."""
    chosen = position_logits(model, example.ids[None].to(model.device))[0, -1].argmax().item()
    return model.config.id2label[chosen], chosen == example.label


def _continuation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, example: Example) -> tuple[str, bool]:
    """The greedy answer to a prompt, and whether it is the reference."""
    prompt, reference = example.ids[: example.first_target], example.ids[example.first_target :]
    generated = model.generate(
        prompt[None].to(model.device),
        attention_mask=torch.ones_like(prompt)[None].to(model.device),
        max_new_tokens=len(reference) + SLACK,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id or 0,
        eos_token_id=tokenizer.eos_token_id,
    )[0, len(prompt) :].cpu()
    tokens = generated.tolist()
    answer = generated[: tokens.index(end)] if (end := tokenizer.eos_token_id) in tokens else generated
    return tokenizer.decode(answer), torch.equal(answer, reference)
