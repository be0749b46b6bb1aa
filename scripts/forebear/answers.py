"""What a model answers: greedy continuations of prompts, judged by exact match."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forebear.datasets import encode
from forebear.progress import progress
from forebear.training import evaluate_losses

SLACK = 8  # tokens that an answer may be longer than the reference


@torch.no_grad()
def answer_queries(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, queries: Sequence[dict], max_length: int
) -> list[dict]:
    """For every query: `id`, the model's `answer`, whether it is `correct`, and its `loss`.

    The loss is the summed cross-entropy of the reference answer, in nats. An answer is
    correct if its tokens up to the end-of-sequence token are the reference's.
    """
    examples = encode(queries, tokenizer, max_length, end=False)
    losses = evaluate_losses(model, examples)
    answers = []
    for query, example, loss in zip(progress(queries, "answers", "query"), examples, losses.tolist(), strict=True):
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
        answers.append(
            {
                "id": query["id"],
                "answer": tokenizer.decode(answer) or "(nothing)",
                "correct": torch.equal(answer, reference),
                "loss": loss,
            }
        )
    return answers
