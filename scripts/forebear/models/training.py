"""Train a stage: a tokenizer, a fresh or a given model, AdamW under a one-cycle schedule.

The same function makes the study's models and the ground truth's retrainings; a subset is
a boolean mask over the documents, and the order of the remaining ones does not change.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from forebear.data.batches import Batch, collate
from forebear.data.records import full_text
from forebear.data.sequences import Example
from forebear.data.token_files import lengths_of
from forebear.errors import ForebearError
from forebear.models.heads import position_logits
from forebear.models.losses import check_losses, evaluate_losses, sequence_losses, summed_loss
from forebear.runtime.progress import progress

# Sequences of one optimizer step that are run together: enough to fill a core, while
# grouping by length saves the padding of a whole random batch.
MICRO_BATCHES = 2


@dataclass(frozen=True)
class Schedule:
    """AdamW under a one-cycle learning rate; fields as the config's `training`."""

    epochs: int
    batch_size: int
    learning_rate: float  # the peak
    weight_decay: float
    warmup: float  # fraction of the steps in which the learning rate rises


@dataclass(frozen=True)
class TrainingRecord:
    """What a stage's manifest says about its training."""

    steps: int
    mean_learning_rate: float
    adam_scale: float  # mean over parameters of √v̂: what AdamW divides a gradient by
    loss: float  # mean over sequences of the summed cross-entropy, nats
    loss_untrained: float


def build_tokenizer(records: Iterable[dict]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer whose vocabulary is every word of the records, most frequent first.

    Raises:
        ForebearError: a record is a chat, which such a tokenizer has no template for.
    """
    splitter = pre_tokenizers.Whitespace()
    counts: dict[str, int] = {}
    for record in records:
        if "messages" in record:
            raise ForebearError(
                f"record {record['id']!r} is a chat (`messages`), but a model that is trained from fresh weights has a "
                "tokenizer of whole words without a chat template; give the first stage a `checkpoint`, or records of "
                "`prompt` and `completion`."
            )
        for word, _ in splitter.pre_tokenize_str(full_text(record)):
            counts[word] = counts.get(word, 0) + 1
    special = ["<pad>", "<unk>", "<s>", "</s>"]
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def build_model(model_config: dict, tokenizer, seed: int) -> PreTrainedModel:
    """A freshly initialised causal language model of any architecture that transformers knows.

    Raises:
        ForebearError: it cannot be built from these options.
    """
    options = dict(model_config)
    model_type = options.pop("model_type")
    try:
        config = AutoConfig.for_model(
            model_type,
            **options,
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config)
    except MemoryError:
        raise
    except Exception as error:  # all that runs here is the library, on a user's section
        raise ForebearError(
            f"model: transformers cannot build the model_type {model_type!r} of these options "
            f"({shorten(str(error), 300, placeholder=' …')}); correct the study's `model`."
        ) from error


def train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    schedule: Schedule,
    seed: Sequence[int],
    subset: np.ndarray | None = None,
    description: str = "training",
) -> tuple[PreTrainedModel, TrainingRecord]:
    """Train a copy of `model` on the mean over sequences of their summed cross-entropy.

    Args:
        subset: [N] bool; train on these sequences only, in the order in which the whole
            set would have been visited.
        seed: of the data order.
    """
    torch.set_flush_denormal(True)  # Adam's moments decay to denormal numbers, which slow a CPU several times
    chosen = np.flatnonzero(np.ones(len(examples), bool) if subset is None else subset)
    batch_size = min(schedule.batch_size, len(chosen))
    steps = _steps(len(examples), chosen, batch_size, schedule.epochs, seed)
    model = copy.deepcopy(model).train()
    loss_untrained = evaluate_losses(model.eval(), examples, chosen, description=description).mean().item()
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )
    scheduler = _one_cycle(optimizer, schedule, len(steps))
    rates: list[float] = []
    for step in progress(steps, description, "step"):
        optimizer.zero_grad()
        for part in _micro_batches(examples, step):
            part = part.to(model.device)
            logits = position_logits(model, part.ids)
            loss = summed_loss(logits, part.labels)
            (loss / len(step)).backward()
            if not torch.isfinite(loss):
                check_losses(sequence_losses(logits.detach().float(), part.labels), part.indices, description)
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if len(rates) < len(steps):  # after the last step a schedule that only rises has no next rate
            scheduler.step()
    model.eval()
    loss = evaluate_losses(model, examples, chosen, description=description).mean().item()
    return model, TrainingRecord(len(steps), float(np.mean(rates)), _adam_scale(optimizer), loss, loss_untrained)


def _one_cycle(
    optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """torch's OneCycleLR, but one step has the peak, and a warm-up of one step does not divide by zero."""
    if steps == 1:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    warmup = schedule.warmup
    if warmup * steps == 1:  # it rises in no time, so the first step is at the peak
        warmup *= 1 - 1e-9
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, schedule.learning_rate, total_steps=steps, pct_start=warmup, cycle_momentum=False
    )


def _adam_scale(optimizer: torch.optim.AdamW) -> float:
    """Mean over parameters of √v̂, the root of the bias-corrected second moment of the gradients."""
    total, count = 0.0, 0
    for group in optimizer.param_groups:
        for state in optimizer.state.values():
            corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"].item())
            total += corrected.sqrt().sum().item()
            count += corrected.numel()
    return total / count


def _steps(total: int, chosen: np.ndarray, batch_size: int, epochs: int, seed: Sequence[int]) -> list[np.ndarray]:
    """The sequences of every optimizer step; each epoch visits every chosen one once."""
    generator = np.random.default_rng(seed)
    keep = np.zeros(total, bool)
    keep[chosen] = True
    steps = []
    for _ in range(epochs):
        order = generator.permutation(total)
        order = order[keep[order]]
        steps += [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return steps


def _micro_batches(examples: Sequence[Example], step: np.ndarray) -> list[Batch]:
    """A step's sequences in groups of like length: the same gradient with less padding."""
    by_length = step[np.argsort(lengths_of(examples)[step], kind="stable")]
    return [collate(examples, part.tolist()) for part in np.array_split(by_length, MICRO_BATCHES) if len(part)]
