"""One file -> rows: csv, tsv, jsonl, json, parquet and txt, each also gzipped. Errors name file and line."""

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from permafrost.errors import DataError, nearest

Row = dict[str, Any]


def read_rows(path: Path, file_format: str | None = None) -> Iterator[Row]:
    """Rows of a file one after the other, each with `where` (file:line). The format is the extension's unless given.

    Raises:
        DataError: no such file, an unknown format, no rows; on the way, text that is not UTF-8, a malformed line.
    """
    path = path.expanduser()
    if not path.is_file():
        siblings = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file{nearest(path.name, siblings) if siblings else ''}")
    chosen = file_format or _format_of(path)
    if chosen not in READERS:
        raise DataError(f"{path}: cannot tell the format from the name; set data.format={'|'.join(READERS)}")
    rows = READERS[chosen](path)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: the file has no rows")
    return itertools.chain([first], rows)


def _format_of(path: Path) -> str:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == "gz" else (suffixes or [""])[-1]


@contextmanager
def _opened(path: Path, newline: str) -> Iterator[TextIO]:
    """The file as text, line by line; a byte order mark at its start is no part of it."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rt", encoding="utf-8-sig", newline=newline) as unpacked:
                yield unpacked
        else:
            with path.open(encoding="utf-8-sig", newline=newline) as file:
                yield file
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a complete gzip file ({error})") from error


def _not_utf8(path: Path) -> DataError:
    """A decoder counts from its last read: the place is looked for again, from the file's first byte."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        guess = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "windows-1252"
        return DataError(
            f"{path}:{line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8, perhaps {guess}; "
            f"convert it with: iconv -f {guess} -t utf-8 {path.name}"
        )
    return DataError(f"{path}: the file changed while it was read")


def _delimited(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    # A tab-separated file quotes nothing: its texts hold quotes of their own.
    csv.field_size_limit(sys.maxsize)
    quoting: Any = {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}

    def read(path: Path) -> Iterator[Row]:
        with _opened(path, newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, **quoting)
            header = next(reader, None)
            if not header:
                raise DataError(f"{path}: the file is empty")
            for values in reader:
                place = f"{path}:{reader.line_num}"
                if len(values) == len(header):
                    yield dict(zip(header, values, strict=True)) | {"where": f"{path.name}:{reader.line_num}"}
                elif values:
                    raise DataError(f"{place}: {len(values)} columns, but the header has {len(header)}")

    return read


def _json_lines(path: Path) -> Iterator[Row]:
    with _opened(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _as_row(_parse(line.rstrip(), path, number), path, number)


def _json_array(path: Path) -> Iterator[Row]:
    with _opened(path, newline="\n") as file:
        text = file.read()
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    values = _parse(text, path, 1)
    if not isinstance(values, list):
        raise DataError(f"{path}:1: expected a list of objects; one object a line is data.format=jsonl")
    for number, value in enumerate(values, 1):
        yield _as_row(value, path, number)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield row | {"where": f"{path.name}:{number}"}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error


def _lines(path: Path) -> Iterator[Row]:
    with _opened(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield {"text": line.strip(), "where": f"{path.name}:{number}"}


def _parse(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{path}:{line}: the JSON is nested too deeply to be rows") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{line + error.lineno - 1}: not JSON: {error.msg} at column {error.colno}") from None


def _as_row(value: Any, path: Path, line: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{path}:{line}: expected an object with columns, found {type(value).__name__}")
    return value | {"where": f"{path.name}:{line}"}


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "jsonl": _json_lines,
    "json": _json_array,
    "parquet": _parquet,
    "txt": _lines,
}
