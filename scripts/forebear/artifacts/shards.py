"""Shards of an artifact, put together: means over the documents, or rows of them.

The whole is what a single job would have written. Factors are means of float64 sums over
the same batches, so that they agree to the last bit or nearly; rows are copied.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py
import numpy as np

from forebear.artifacts.hdf5 import Attributes, create, open_checked, write_array
from forebear.errors import ForebearError

COUNTED = {"covariances": "positions", "eigenvalues": "sequences"}  # what the means of a factor are over

Shard = Sequence[int]  # (k, n): the k-th of n parts, counted from 1

_SUMMED = ("sequences", "positions", "seconds")
_LARGEST = ("peak_bytes",)
_OWN = ("kind", "content", "documents_digest")


def shard_kind(kind: str, shard: Shard) -> str:
    """What a shard's artifact says that it holds, so that it is never taken for the whole or for another shard."""
    number, shards = shard
    return f"{kind}, shard {number} of {shards}"


def gather_factor(path: str | Path, kind: str, shards: Sequence[str | Path], expected: Attributes) -> None:
    """Write the factor of all documents, in float32, from those of its shards.

    Args:
        kind: one of COUNTED.
        shards: the files of shard 1, 2, ..., all of them; a shard may be empty.
        expected: root attributes that every shard must carry.

    Raises:
        ForebearError: a shard is missing, damaged, or does not belong to the others.
    """
    with _opened(kind, shards, expected) as files, create(path, kind, _whole(files)) as target:
        counts = [int(file.attrs[COUNTED[kind]]) for file in files]
        filled = [(file, count) for file, count in zip(files, counts, strict=True) if count]
        for name in _common_datasets([file for file, _ in filled]):
            block, _, dataset = name.rpartition("/")
            counts = [count * _share(file, block, dataset) for file, count in filled]
            mean = weighted_mean((file[name][()] for file, _ in filled), counts)
            write_array(target, name, mean if dataset == "shares" else mean.astype(np.float32))


def _share(file: h5py.File, block: str, dataset: str) -> float:
    """Of a shard's positions, the part that the means of a block, or of the map that it is of, are over."""
    module = next((part for part in (block, block.rpartition("/")[0]) if f"{part}/shares" in file), None)
    return 1.0 if module is None or dataset in ("shares", "eigenvalues") else float(file[f"{module}/shares"][0])


def weighted_mean(means: Iterator[np.ndarray], counts: Sequence[float]) -> np.ndarray:
    """Σ_k (n_k / Σ n) mean_k in float64, in the order given; 0 where there is nothing to take a mean of."""
    total = sum(counts) or 1
    return sum(count / total * mean.astype(np.float64) for mean, count in zip(means, counts, strict=True))


def gather_rows(
    path: str | Path, kind: str, shards: Sequence[str | Path], documents: int, expected: Attributes
) -> None:
    """Write what every one of `documents` documents has, from the rows in the shards.

    Args:
        kind: "scores" or "self-influence"; every dataset of a shard has a row for each of its `documents`.
        shards, expected: as for `gather_factor`.

    Raises:
        ForebearError: a shard is missing, damaged, or does not belong to the others.
    """
    with _opened(kind, shards, expected) as files:
        indices = np.concatenate([file["documents"][()] for file in files])
        if not np.array_equal(np.sort(indices), np.arange(documents)):
            folder = Path(shards[0]).parent
            raise ForebearError(
                f"{folder}: its shards do not have each of the {documents} documents once; "
                f"delete them and run again: rm -r {folder}"
            )
        order = np.argsort(indices)
        with create(path, kind, _whole(files)) as target:
            for name in _common_datasets(files):
                if name != "documents":
                    target[name] = np.concatenate([file[name][()] for file in files])[order]
            for name, group in target.items():
                if isinstance(group, h5py.Group):
                    group.attrs.update(_whole([file[name] for file in files]))


@contextmanager
def _opened(kind: str, shards: Sequence[str | Path], expected: Attributes) -> Iterator[list[h5py.File]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(open_checked(path, shard_kind(kind, (number, len(shards))), expected))
            for number, path in enumerate(shards, start=1)
        ]


def _whole(files: Sequence[h5py.Group]) -> dict:
    """The whole's attributes, of a file or a group: counts and seconds summed, the largest memory, all others the same in every shard."""
    attributes = {key: value for key, value in files[0].attrs.items() if key not in _OWN}
    for file in files[1:]:
        for key in sorted(attributes.keys() | file.attrs.keys() - set(_OWN)):
            if key not in _SUMMED + _LARGEST and file.attrs.get(key) != attributes.get(key):
                raise ForebearError(
                    f"{file.file.filename}: was made with another {key.replace('_', ' ')} than {files[0].file.filename}; "
                    f"delete both and run again: rm {file.file.filename} {files[0].file.filename}"
                )
    for keys, join in ((_SUMMED, sum), (_LARGEST, max)):
        attributes |= {key: join(file.attrs[key] for file in files) for key in keys if key in attributes}
    return attributes


def _common_datasets(files: Sequence[h5py.File]) -> list[str]:
    """Names of the datasets, the same in all files."""
    names = [_datasets(file) for file in files]
    for file, found in zip(files, names, strict=True):
        if found != names[0]:
            raise ForebearError(
                f"{file.filename}: has other blocks than {files[0].filename}; delete both and run again: "
                f"rm {file.filename} {files[0].filename}"
            )
    return names[0]


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(found)
