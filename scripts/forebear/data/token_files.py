"""Token sequences of a large data set in a memory-mapped file, which all jobs of a study share.

A small data set is tokenised anew by every job. The tokens of a large one are written once,
under a name that says what they were made of, and afterwards only mapped: what a batch does
not touch takes no memory.
"""

import hashlib
import json
import re
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

from forebear.artifacts.code_digest import engine_digest
from forebear.artifacts.digests import collection_digest, file_digest
from forebear.artifacts.manifests import CODE, OTHERS, matching
from forebear.data import sequences
from forebear.data.chat import DEFAULT_CHAT, Chat
from forebear.data.records import Records, read_records
from forebear.data.sequences import Encoded, Example, encode, print_notes, stream
from forebear.data.tokens import convention_of
from forebear.runtime.atomic import atomic_path
from forebear.runtime.progress import progress

SMALL = 1 << 20  # bytes of records whose tokens are written to no file: they take less than a second
ID = np.dtype("<i4")  # of a token in the file


@dataclass(frozen=True, eq=False)
class Sequences(Sequence[Example]):
    """Examples whose tokens lie one after the other in an array, mostly a mapped one."""

    ids: np.ndarray  # [ΣT] int32
    lengths: np.ndarray  # [N] int64, tokens of each sequence
    first_targets: np.ndarray  # [N] int32
    labels: np.ndarray | None = None  # [N] int32, of a classifier
    masked: np.ndarray | None = None  # [N] bool: of these `masks` says which tokens carry loss
    masks: np.ndarray | None = None  # [Σ⌈T/8⌉ over `masked`] uint8, each sequence's bits from a byte of its own

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def _mask_starts(self) -> np.ndarray:
        sizes = -(-self.lengths // 8) * self.masked
        return np.cumsum(sizes) - sizes

    @property
    def positions(self) -> np.ndarray:
        """`Example.positions` of each, [N]."""
        return self.lengths - (self.labels is None)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, length = self._starts[index], self.lengths[index]
        ids = torch.from_numpy(self.ids[start : start + length].astype(np.int64))
        label = None if self.labels is None else int(self.labels[index])
        return Example(ids, int(self.first_targets[index]), label, self._targets(index))

    def _targets(self, index: int) -> torch.Tensor | None:
        if self.masked is None or not self.masked[index]:
            return None
        length, start = int(self.lengths[index]), self._mask_starts[index]
        bits = np.unpackbits(self.masks[start : start + -(-length // 8)], count=length)
        return torch.from_numpy(bits.astype(bool))


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Tokens of each sequence, [N] int64."""
    if isinstance(examples, Sequences):
        return examples.lengths
    return np.array([len(example.ids) for example in examples], dtype=np.int64)


def positions_of(examples: Sequence[Example]) -> np.ndarray:
    """`Example.positions` of each sequence, [N] int64."""
    if isinstance(examples, Sequences):
        return examples.positions
    return np.array([example.positions for example in examples], dtype=np.int64)


def open_sequences(
    records: str | Path,
    tokenizer,
    max_length: int,
    end: bool = True,
    classes: Mapping[str, int] | None = None,
    chat: Chat = DEFAULT_CHAT,
    digest: str | None = None,
    small: int = SMALL,
) -> Sequence[Example]:
    """The examples of a prepared file of records, as `encode` makes them.

    Those of a file of more than `small` bytes are mapped from a file in the folder `tokens`
    beside it. It is made if it is not there, if anything that it depends on has changed,
    or if it is damaged. Two jobs may make it at the same time.

    Args:
        digest: `file_digest` of the records, if it is known already.

    Raises:
        ForebearError: a record has no token to predict; see `encode`.
    """
    records = Path(records)
    if records.stat().st_size <= small:
        return encode(read_records(records), tokenizer, max_length, end, classes, chat)
    digest = digest or file_digest(records)
    described = [_tokenizer_digest(tokenizer), max_length, end, classes and dict(classes), asdict(chat), _versions()]
    options = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    path = records.parent / "tokens" / f"{records.stem}.{digest[:16]}.{options[:16]}.npz"
    found = read_sequences(path)
    if found is None:
        lines = Records(records)
        encoded = stream(
            progress(lines, f"tokens of {records.name}", "record"), tokenizer, max_length, end, classes, chat
        )
        write_sequences(path, encoded)
        _remove_others(path, digest[:16])
        found = read_sequences(path)
    examples, notes = found
    print_notes(notes, len(examples), max_length)
    return examples


def write_sequences(path: Path, encoded: Iterable[Encoded]) -> None:
    """Write examples as they come: their tokens beside `path`, then all else to it."""
    lengths, firsts, labels, masked, masks = array("q"), array("i"), array("i"), array("b"), bytearray()
    notes, digest = Counter(), hashlib.sha256()
    with atomic_path(_tokens_path(path)) as temporary, temporary.open("wb") as handle:
        for one in encoded:
            example = one.example
            tokens = example.ids.numpy().astype(ID).tobytes()
            handle.write(tokens)
            digest.update(tokens)
            lengths.append(len(example.ids))
            firsts.append(example.first_target)
            if example.label is not None:
                labels.append(example.label)
            masked.append(example.targets is not None)
            if example.targets is not None:
                masks += np.packbits(example.targets.numpy()).tobytes()
            notes.update(one.happened)
    arrays = {"lengths": np.array(lengths, np.int64), "first_targets": np.array(firsts, np.int32)}
    if labels:
        arrays["labels"] = np.array(labels, np.int32)
    if masks:
        arrays |= {"masked": np.array(masked, bool), "masks": np.frombuffer(masks, np.uint8)}
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, **arrays, notes=json.dumps(notes), digest=digest.hexdigest())


def read_sequences(path: Path) -> tuple[Sequences, dict[str, int]] | None:
    """What `write_sequences` wrote, and how often which of NOTES happened; None if it is not there as a whole."""
    tokens = _tokens_path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        notes, digest = json.loads(str(arrays.pop("notes"))), str(arrays.pop("digest"))
        if tokens.stat().st_size == 0 or file_digest(tokens) != digest:
            return None
        return Sequences(np.memmap(tokens, ID, "r"), **arrays), notes
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def _tokens_path(path: Path) -> Path:
    return path.with_suffix(".tokens")


def _remove_others(path: Path, digest: str) -> None:
    """Remove tokens of what the same file of records contained before."""
    name = path.name.split(f".{digest}.")[0]
    for file in path.parent.iterdir():
        named = re.fullmatch(re.escape(name) + r"\.([0-9a-f]{16})\.[0-9a-f]{16}\.(npz|tokens)", file.name)
        if named and named[1] != digest:
            file.unlink(missing_ok=True)


def _tokenizer_digest(tokenizer) -> str:
    """Of all that its tokens depend on: its own description, or the files of one that exists only in Python."""
    convention = convention_of(tokenizer)
    parts = [type(tokenizer).__name__, tokenizer.chat_template, sorted(convention.specials)]
    parts += [convention.before, convention.after, convention.start, convention.end]
    if tokenizer.is_fast:
        parts.append(tokenizer.backend_tokenizer.to_str())
    else:
        parts.append(collection_digest(matching(Path(tokenizer.name_or_path), (*OTHERS, *CODE))))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions() -> list[str]:
    """Of the code that turns records into tokens."""
    return [engine_digest(sequences.__file__), transformers.__version__, tokenizers.__version__]
