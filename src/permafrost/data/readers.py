"""One file -> rows: csv, tsv, jsonl, json, parquet and txt, each also gzipped. Errors name file and line."""

import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from permafrost.errors import DataError, nearest

Row = dict[str, Any]


def read_rows(path: Path, file_format: str | None = None) -> list[Row]:
    """Rows of a file, each with `where` (file:line). The format is the extension's unless given.

    Raises:
        DataError: no such file, an unknown format, text that is not UTF-8, a malformed line, no rows.
    """
    path = path.expanduser()
    if not path.is_file():
        siblings = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file{nearest(path.name, siblings) if siblings else ''}")
    chosen = file_format or _format_of(path)
    if chosen not in READERS:
        raise DataError(f"{path}: cannot tell the format from the name; set data.format={'|'.join(READERS)}")
    rows = list(READERS[chosen](path))
    if not rows:
        raise DataError(f"{path}: the file has no rows")
    return rows


def _format_of(path: Path) -> str:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == "gz" else (suffixes or [""])[-1]


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a complete gzip file ({error})") from error
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        guess = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "windows-1252"
        raise DataError(
            f"{path}:{line}: byte {error.start} (0x{content[error.start]:02x}) is not UTF-8, perhaps {guess}; "
            f"convert it with: iconv -f {guess} -t utf-8 {path.name}"
        ) from None


def _delimited(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    # A tab-separated file quotes nothing: its texts hold quotes of their own.
    csv.field_size_limit(sys.maxsize)
    quoting: Any = {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}

    def read(path: Path) -> Iterator[Row]:
        reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, **quoting)
        header = next(reader, None)
        if not header:
            raise DataError(f"{path}: the file is empty")
        for values in reader:
            if len(values) != len(header):
                if not values:
                    continue
                raise DataError(f"{path}:{reader.line_num}: {len(values)} columns, but the header has {len(header)}")
            yield dict(zip(header, values, strict=True)) | {"where": f"{path.name}:{reader.line_num}"}

    return read


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            yield _as_row(_parse(line, path, number), path, number)


def _json_array(path: Path) -> Iterator[Row]:
    text = _read_text(path)
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
        table = parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield row | {"where": f"{path.name}:{number}"}


def _lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
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
