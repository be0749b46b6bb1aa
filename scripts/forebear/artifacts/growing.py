"""The store of what a pass has finished: a killed job goes on where it was, and other queries only add work.

A job that answers queries one by one has a store, a file in the folder `.store` beside its output. No rule names
it, so Snakemake never removes it. `keys` [K] are all queries that the job was ever asked for, `written` [n, K]
says which of n parts of the work (documents; 1 where a query's work is not divided) are finished of each, and
every other dataset has an axis of K. What is written stays as it is. A store of other code, data or params is
begun anew, and so is one that has none of the queries that are asked for.
"""

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from forebear.artifacts.digests import content_digest
from forebear.artifacts.hdf5 import FORMAT, Attributes, create, open_hdf5
from forebear.runtime.atomic import explained_write, own_copy, same_file

CHUNK = (1024, 32)  # parts and queries that lie together in the file
KEY = "S64"  # a digest


def store_path(output: str | Path, name: str | None = None) -> Path:
    """Where the store of a job's output lies, or that of one of several things in it."""
    path = Path(output)
    return path.parent / ".store" / (path.name if name is None else f"{path.stem}/{name}.h5")


class Store:
    """An open store. HDF5 locks it, so that a second process that wants to write it is refused.

    A digest of its content is in it from when it is sealed until something is added.

    Attributes:
        file: where the datasets are.
        rows: [Q], where the queries that are asked for are among the K.
        written: [n, K] bool.
    """

    def __init__(self, path: str | Path, kind: str, made_from: Attributes, keys: Sequence[str], parts: int = 1):
        """Open a store, or begin it.

        Args:
            made_from: attributes of all that the work depends on beside the queries.
            keys: [Q], the queries that are asked for.
            parts: n.

        Raises:
            ForebearError: another process has it open, or it cannot be written.
        """
        self.path, self._parts = Path(path), parts
        self._identity = {**made_from, "kind": kind, "format": FORMAT}
        with explained_write(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self._reopened(set(keys)) or self._begun()
            known = self.file["keys"].asstr()[()].tolist()
            row_of = {key: row for row, key in enumerate(dict.fromkeys([*known, *keys]))}
            self.rows = np.array([row_of[key] for key in keys], int)
            if len(row_of) > len(known):
                self._unseal()
                self.file["keys"].resize(len(row_of), axis=0)
                self.file["keys"][:] = np.array(list(row_of), KEY)
            self.written = self.by_part("written", bool)[()]
            self.file.flush()

    @property
    def kept(self) -> np.ndarray:
        """[Q] bool: the queries of which something is there."""
        return self.written[:, self.rows].any(0)

    def _reopened(self, asked: set[str]) -> h5py.File | None:
        """The store that is there, if it is whole, of the same work, and has a query that is asked for."""
        own_copy(self.path)
        try:
            file = open_hdf5(self.path, "r+", exclusive=True)
        except OSError:  # there is none, or it is damaged
            return None
        try:
            same = all(file.attrs.get(key) == value for key, value in self._identity.items())
            whole = same and ("content" not in file.attrs or file.attrs["content"] == content_digest(file))
            if whole and asked & set(file["keys"].asstr()[()]):
                return file
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):  # whatever HDF5 stumbles over
            pass
        file.close()
        return None

    def _begun(self) -> h5py.File:
        file = open_hdf5(self.path, "w", exclusive=True)
        file.attrs.update({**self._identity, "complete": False})
        file.create_dataset("keys", (0,), KEY, maxshape=(None,))
        return file

    def by_part(self, name: str, dtype: np.dtype | type, fill: float = 0) -> h5py.Dataset:
        """A dataset [n, K], begun or grown.

        All its room is taken at once, so that what a kill leaves has a whole index.
        """
        if name not in self.file:
            early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            chunks = (min(CHUNK[0], max(1, self._parts)), CHUNK[1])
            room = {"maxshape": (None, None), "chunks": chunks, "fillvalue": fill, "dcpl": early}
            self.file.create_dataset(name, (self._parts, 0), dtype, **room)
        if self.file[name].shape[1] < len(self.file["keys"]):
            self.file[name].resize(len(self.file["keys"]), axis=1)
        return self.file[name]

    def by_query(self, name: str, shape: tuple[int, ...], dtype: np.dtype | type) -> h5py.Dataset:
        """A dataset [K, ...], begun, or grown to have at least this shape behind K."""
        queries = len(self.file["keys"])
        if name not in self.file:
            chunks = (1, *(max(1, size) for size in shape))
            self.file.create_dataset(name, (queries, *shape), dtype, maxshape=(None,) * len(chunks), chunks=chunks)
        dataset = self.file[name]
        dataset.resize((queries, *map(max, dataset.shape[1:], shape)))
        return dataset

    def mark(self, parts: np.ndarray | slice, rows: np.ndarray) -> None:
        """Say that some parts of some queries are finished, once their values are in the file."""
        self._unseal()
        self.file.flush()  # the values first, so that the mask never speaks of values that a kill has lost
        self.written[parts, rows[:, None]] = True
        self.file["written"][parts] = self.written[parts]
        self.file.flush()

    def _unseal(self) -> None:
        if "content" in self.file.attrs:
            del self.file.attrs["content"]
            self.file.attrs["complete"] = False

    def seal(self, attributes: Attributes) -> dict:
        """Close the store with what there is to say of it; its attributes then.

        Args:
            attributes: to `seconds` those of before are added, and of `peak_bytes` the larger stays; what
                added nothing took none.
        """
        with explained_write(self.path):
            found, attributes = self.file.attrs, {key: attributes[key] for key in attributes if key != "content"}
            for key, join in (("seconds", sum), ("peak_bytes", max)):
                if key in found and key in attributes:
                    attributes[key] = found[key] if "content" in found else join((found[key], attributes[key]))
            if "content" not in found or any(found.get(key) != value for key, value in attributes.items()):
                self._unseal()
                found.update({**attributes, "complete": True})
                found["content"] = content_digest(self.file)
            sealed = dict(found)
            self.file.close()
        return sealed

    def give(self, output: str | Path, attributes: Attributes) -> None:
        """Seal a store whose datasets are all by query, and write those asked for, as a file that says the same.

        It is another name of the store, if that has these queries and no others, so that no space is taken twice.
        """
        sealed, queries = self.seal(attributes), self.written.shape[1]
        if np.array_equal(self.rows, np.arange(queries)):
            same_file(self.path, output)
            Path(output).touch()
            return
        with open_hdf5(self.path, "r") as source, create(output, sealed["kind"], sealed) as target:

            def copy(name: str, item: h5py.Dataset | h5py.Group) -> None:
                if isinstance(item, h5py.Dataset) and name != "written":
                    chosen = target.create_dataset(name, (len(self.rows), *item.shape[1:]), item.dtype)
                    for k, row in enumerate(self.rows):
                        chosen[k] = item[row]

            source.visititems(copy)
