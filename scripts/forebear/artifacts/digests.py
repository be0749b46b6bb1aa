"""Digests of what artifacts are made from: files, collections of them, params, and the content of an HDF5 file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def collection_digest(paths: Sequence[str | Path]) -> str:
    """SHA-256 of the digests of several files, in their order."""
    return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()


DIGEST_ROWS = 1 << 24  # bytes of a dataset that are hashed at once


def params_digest(params: Mapping) -> str:
    """Digest of a job's own parameters, JSON-compatible.

    Without its shard, as shards that go together have the same, and without its recipe, as files say
    themselves what they were made from.
    """
    content = json.dumps({k: v for k, v in params.items() if k not in ("shard", "recipe")}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def content_digest(file: h5py.File) -> str:
    """SHA-256 over names, shapes, types and values of all datasets, and the attributes of the file and its groups."""
    digest = hashlib.sha256()

    def add_attributes(item: h5py.Group) -> None:
        attributes = {key: str(value) for key, value in item.attrs.items() if key != "content"}
        digest.update(json.dumps(attributes, sort_keys=True).encode())

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Group) and item.attrs:
            digest.update(name.encode())
            add_attributes(item)
        if isinstance(item, h5py.Dataset):
            digest.update(f"{name} {item.shape} {item.dtype}".encode())
            rows = max(1, DIGEST_ROWS // max(1, item.dtype.itemsize * int(np.prod(item.shape[1:]))))
            for first in range(0, item.shape[0], rows):
                digest.update(np.ascontiguousarray(item[first : first + rows]))

    add_attributes(file)
    file.visititems(add)
    return digest.hexdigest()
