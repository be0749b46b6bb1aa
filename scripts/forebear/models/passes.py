"""A pass over a data set, batch after batch, in smaller ones where the memory does not suffice."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from forebear.data.batches import Batch, batch_indices, collate
from forebear.data.sequences import Example
from forebear.errors import ForebearError
from forebear.runtime.progress import progress

# What allocators say that have no exception of their own: torch's of the processor, CUDA's, cuBLAS's.
MESSAGES = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")

Result = TypeVar("Result")


class NotEnoughMemoryError(ForebearError):
    """What cannot be made any smaller does not fit into memory."""


def in_batches(
    run: Callable[[Batch], Result],
    examples: Sequence[Example],
    batches: int | Sequence[Sequence[int]],
    description: str,
) -> Iterator[tuple[Batch, Result]]:
    """run(batch) of all batches. One that does not fit into memory is run in halves, and so is every later one of its size.

    Args:
        batches: padded tokens per batch, or the batches themselves, as indices in `examples`.
        description: of the pass, for its progress.

    Raises:
        NotEnoughMemoryError: one sequence alone does not fit.
    """
    most: int | None = None  # padded tokens that a batch may have, once one did not fit
    for indices in progress(
        batch_indices(examples, batches) if isinstance(batches, int) else batches, description, "batch"
    ):
        waiting = [list(indices)]
        while waiting:
            part = waiting.pop(0)
            batch = collate(examples, part)
            sequences, tokens = batch.ids.shape[0], batch.ids.numel()
            if sequences == 1 or most is None or tokens <= most:
                fits, result = attempt(run, batch)
                if fits:
                    yield batch, result
                    continue
                if sequences == 1:
                    raise NotEnoughMemoryError(
                        f"{description}: a sequence of {tokens} tokens does not fit into memory; lower `max_length`, or "
                        "raise `memory` or `gpus`."
                    )
                most = -(-sequences // 2) * batch.ids.shape[1]
                print(f"{description}: {tokens} tokens did not fit into memory; going on with {most}", flush=True)
            half = -(-sequences // 2)
            waiting[:0] = [part[:half], part[half:]]


def attempt(run: Callable[..., Result], *arguments: object) -> tuple[bool, Result | None]:
    """(True, what it returns), or (False, None) if it does not fit into memory, with all freed that it had taken."""
    try:
        return True, run(*arguments)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect(1)  # what an exception held is young; a full collection takes a third of a second
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return False, None


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in MESSAGES)
