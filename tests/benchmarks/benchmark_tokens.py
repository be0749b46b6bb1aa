"""Memory and time until a job has the first batch of a large data set, when its tokens are made and afterwards.

    python tests/benchmarks/benchmark_tokens.py --documents 1000000

Random words of a random vocabulary, tokenised by a byte-pair encoding of 32,000 tokens that was
trained on some of them. Each measurement is a process of its own: preparing the records, the
first job that opens them, the second one, and for comparison one that holds everything in lists.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forebear.data.batches import batch_indices, collate, number_of_positions
from forebear.data.records import checked_records, read_records, write_records
from forebear.data.sequences import encode
from forebear.data.token_files import open_sequences

BATCH_TOKENS = 8192
WORDS = 50_000
VOCABULARY = 32_000


def documents(count: int, tokens: int) -> Iterator[dict]:
    """Texts of about so many tokens each."""
    generator = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucm"))
    words = ["".join(generator.choice(letters, generator.integers(2, 9))) for _ in range(WORDS)]
    running = [words[place] for place in (WORDS * generator.random(2_000_000) ** 3).astype(int)]
    starts = generator.integers(len(running) - tokens, size=count).tolist()
    lengths = generator.integers(tokens // 2, tokens, size=count).tolist()
    for start, length in zip(starts, lengths, strict=True):
        yield {"text": " ".join(running[start : start + length])}


def make(folder: Path, count: int, tokens: int) -> None:
    """What a user brings: a file of JSON lines, and a tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with (folder / "mine.jsonl").open("w") as handle:
        handle.writelines(json.dumps(record) + "\n" for record in documents(count, tokens))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((record["text"] for record in documents(5000, tokens)), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def prepare(folder: Path) -> None:
    write_records(folder / "prepared.jsonl", checked_records(folder / "mine.jsonl"))


def first_batch(folder: Path, tokens: int, in_memory: bool = False) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if in_memory:
        examples = encode(read_records(folder / "prepared.jsonl"), tokenizer, 2 * tokens)
    else:
        examples = open_sequences(folder / "prepared.jsonl", tokenizer, 2 * tokens)
    positions = number_of_positions(examples)
    batches = batch_indices(examples, BATCH_TOKENS)
    batch = collate(examples, batches[0])
    print(f"{len(examples):,} sequences, {positions:,} positions, {len(batches):,} batches, {tuple(batch.ids.shape)}")


JOBS = {
    "make": lambda folder, options: make(folder, options.documents, options.tokens),
    "prepare the records": lambda folder, options: prepare(folder),
    "open them, the first time": lambda folder, options: first_batch(folder, options.tokens),
    "open them again": lambda folder, options: first_batch(folder, options.tokens),
    "in lists": lambda folder, options: first_batch(folder, options.tokens, in_memory=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=200, help="of a document, about")
    parser.add_argument("--lists", action="store_true", help="measure lists in memory too")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="of the files; a temporary one by default")
    options = parser.parse_args()
    if options.job:
        began = time.perf_counter()
        JOBS[options.job](options.folder, options)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{options.job}: {time.perf_counter() - began:.1f} s, {peak:.2f} GiB at the most")
        return
    with tempfile.TemporaryDirectory() as folder:
        for job in JOBS:
            if job != "in lists" or options.lists:
                sizes = ["--documents", str(options.documents), "--tokens", str(options.tokens)]
                command = [sys.executable, __file__, *sizes, "--folder", str(options.folder or folder), "--job", job]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
