"""Tensors by block in HDF5 artifacts; apart from these, so that jobs that only put files together need no torch."""

from collections.abc import Iterator, Mapping

import h5py
import torch
from torch import Tensor

from forebear.artifacts.hdf5 import datasets_of, write_array


def write_tensors(file: h5py.File, tensors: Mapping[str, Tensor], dataset: str) -> None:
    """Write {block: tensor} as `/{block}/{dataset}`.

    Raises:
        ForebearError: a tensor has NaN or infinite values.
    """
    for block, tensor in tensors.items():
        write_array(file, f"{block}/{dataset}", tensor.cpu().numpy())


def read_tensors(file: h5py.File, dataset: str) -> dict[str, Tensor]:
    """`/{block}/{dataset}` of every block that has it, in memory."""
    return {block: torch.from_numpy(item[()]) for block, item in datasets_of(file, dataset).items()}


class StoredTensors(Mapping[str, Tensor]):
    """Block → tensor, read from an open file whenever it is asked for, so that memory holds what is in use."""

    def __init__(self, file: h5py.File, dataset: str):
        self._datasets = datasets_of(file, dataset)

    def __getitem__(self, block: str) -> Tensor:
        return torch.from_numpy(self._datasets[block][()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)
