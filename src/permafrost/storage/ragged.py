"""Rows of unequal length, end to end in one array: in memory, or in a file that is read a row at a time."""

import math
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np


class RaggedArray:
    """Row i is `values[offsets[i]:offsets[i + 1]]`; `values` (total, ...), `offsets` (rows + 1,) from 0.

    A file is read, not mapped: on recent Linux each touch of a mapped file keeps 2 MiB of it resident, so that reading
    rows in random order soon holds all of it (benchmarks/results/row_reads.md). It can be read on after another process
    has removed it.
    """

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self.values, self.offsets = values, offsets
        self._path: Path | None = None

    @classmethod
    def in_file(cls, path: Path, offsets: np.ndarray, dtype: Any, *channels: int) -> "RaggedArray":
        """Over a file that holds nothing but the values, as they lie in memory."""
        array = cls(np.empty((0, *channels), dtype), offsets)
        array._path = path
        array._open()
        return array

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        if self._path is None:
            return self.values[start:end]
        value_bytes = self.values.itemsize * math.prod(self.values.shape[1:])
        content = os.pread(self._descriptor, (end - start) * value_bytes, start * value_bytes)
        if len(content) != (end - start) * value_bytes:
            raise EOFError(f"{self._path} ends before row {row} does")
        return np.frombuffer(content, self.values.dtype).reshape(-1, *self.values.shape[1:])

    def _open(self) -> None:
        assert self._path is not None
        self._descriptor = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def __getstate__(self) -> dict[str, Any]:
        """Another process, such as a loader's worker, opens the file anew."""
        return {name: value for name, value in vars(self).items() if name != "_descriptor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._path is not None:
            self._open()
