"""The rows of a split in an Arrow file, written and read slice by slice, so that memory does not grow with them."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from permafrost.data.problems import fault

SLICE_ROWS = 4_000
WHERE = "where"  # the column that says file:line, for messages; of a column file file:first-last, a line for each word
# What a row is told by, and its model reads or writes: all but its labels.
TEXT_FIELDS = ("text", "text_pair", "source", "references", "turns", "tokens")
ORIGIN = "origin"  # of rows from several files, the name of each one's
LINES = re.compile(r"(.*):(\d+)-\d+", re.DOTALL)


class Table(Protocol):
    """Rows of which single columns are asked for: a table, or rows kept on disk."""

    @property
    def num_rows(self) -> int: ...

    @property
    def column_names(self) -> Sequence[str]: ...

    def __getitem__(self, name: str, /) -> pa.ChunkedArray: ...


@dataclass(frozen=True)
class StoredRows:
    """A split on disk. `fingerprint` is a hash of all its columns but `where`, in the rows' order."""

    path: Path
    num_rows: int
    column_names: tuple[str, ...]
    fingerprint: str

    def slices(self) -> Iterator[pa.Table]:
        if self.num_rows:
            with pa.OSFile(str(self.path)) as source:
                reader = pa.ipc.open_file(source)
                for number in range(reader.num_record_batches):
                    yield pa.Table.from_batches([reader.get_batch(number)])

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """One column, in memory."""
        return pa.chunked_array([_alone(part[name]) for part in self.slices()])

    def at(self, rows: Iterable[int]) -> Iterator[dict[str, Any]]:
        """Single rows, in the order of the split."""
        wanted, start = np.unique(np.fromiter(rows, np.int64)), 0
        for part in self.slices():
            here = wanted[(wanted >= start) & (wanted < start + part.num_rows)] - start
            yield from part.take(here).to_pylist()
            start += part.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (row for part in self.slices() for row in part.to_pylist())


class RowsWriter:
    """Slices go in, `finish` gives the split. The file is named by its content: the same rows are kept once."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.partial = directory / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
        self.num_rows = 0
        self.column_names: tuple[str, ...] = ()
        self._digest, self._where = hashlib.blake2b(digest_size=10), hashlib.blake2b(digest_size=4)
        self._writer: Any = None
        self._schema: Any = None

    def add(self, rows: pa.Table) -> None:
        if self._writer is None:
            self.column_names, self._schema = tuple(rows.column_names), rows.schema
            self._digest.update("".join(str(field) for field in rows.schema if field.name != WHERE).encode())
            self._writer = pa.ipc.new_file(str(self.partial), rows.schema)
        if rows.schema != self._schema:
            there, here = _names(self._schema), _names(rows.schema)
            fix = "give them the same ones by data.columns"
            where = rows[WHERE][0].as_py() if rows.num_rows else ""
            raise fault("E301", where, f"rows of {here} after rows of {there}", fix)
        self._writer.write_table(rows)
        self.num_rows += rows.num_rows
        columns = [rows[name].to_pylist() for name in rows.column_names if name != WHERE]
        for values in zip(*columns, strict=True):
            self._digest.update("\x00".join(map(str, values)).encode("utf-8", "surrogatepass") + b"\x01")
        self._where.update("\x00".join(rows[WHERE].to_pylist()).encode("utf-8", "surrogatepass"))

    def finish(self) -> StoredRows:
        path = self.partial.with_name(f"{self._digest.hexdigest()}-{self._where.hexdigest()}.arrow")
        if self._writer is not None:
            self._writer.close()
            self.partial.replace(path)
        return StoredRows(path, self.num_rows, self.column_names, self._digest.hexdigest())

    def discard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self.partial.unlink(missing_ok=True)


def _names(schema: pa.Schema) -> str:
    return ", ".join(name for name in schema.names if name != WHERE)


@contextmanager
def writing(directory: Path) -> Iterator[RowsWriter]:
    """A writer whose file is gone again if its rows do not all arrive."""
    writer = RowsWriter(directory)
    try:
        yield writer
    finally:
        writer.discard()


def word_place(where: str, word: int) -> str:
    """file:line of a word, by the place of its row."""
    lines = LINES.fullmatch(where)
    return f"{lines[1]}:{int(lines[2]) + word}" if lines else f"{where}, word {word + 1}"


def keep(slices: Iterable[pa.Table], directory: Path) -> StoredRows:
    with writing(directory) as writer:
        for rows in slices:
            writer.add(rows)
        return writer.finish()


def select(rows: StoredRows, positions: Iterable[int], directory: Path) -> StoredRows:
    """The rows at these positions, in the order of the split."""
    chosen = np.zeros(rows.num_rows, bool)
    chosen[np.fromiter(positions, np.int64)] = True
    return rows if chosen.all() else keep(_filtered(rows, chosen), directory)


def _filtered(rows: StoredRows, chosen: np.ndarray) -> Iterator[pa.Table]:
    start = 0
    for part in rows.slices():
        yield part.filter(pa.array(chosen[start : start + part.num_rows]))
        start += part.num_rows


def _alone(column: pa.ChunkedArray) -> pa.Array:
    """A copy: a view would hold the whole slice, with all its texts."""
    return pa.array(column.to_pylist(), column.type)
