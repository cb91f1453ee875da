"""One file -> rows: csv, tsv, jsonl, json, parquet, txt and column files, each also gzipped. Errors name file and line.

A row that cannot be read has FAULT, a sentence, in place of its columns, so that all faults of a file can be told.
"""

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from permafrost.errors import DataError, nearest

Row = dict[str, Any]
FAULT = "fault"


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
                where = {"where": f"{path.name}:{reader.line_num}"}
                if len(values) == len(header):
                    yield dict(zip(header, values, strict=True)) | where
                elif values:
                    found = f"{len(values)} columns, but the header has {len(header)}"
                    yield where | {FAULT: f"{path}:{reader.line_num}: {found}"}

    return read


def _json_lines(path: Path) -> Iterator[Row]:
    with _opened(path, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield _as_row(_parse(line.rstrip(), path, number), path, number)
                except DataError as error:
                    yield {"where": f"{path.name}:{number}", FAULT: str(error)}


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


def _column_file(path: Path) -> Iterator[Row]:
    """A sentence a row, as in CoNLL's files: a word a line, its columns apart by blanks or tabs, a blank line between.

    Columns are named by their number, `"0"` the first; document marks (-DOCSTART-) are no sentence.
    """
    with _opened(path, newline="\n") as file:
        sentence, first_line = list[list[str]](), 1
        for number, line in enumerate(itertools.chain(file, [""]), 1):
            if columns := _columns(line):
                first_line = first_line if sentence else number
                sentence.append(columns)
            elif sentence:
                if sentence[0][0] != "-DOCSTART-":
                    yield _sentence(sentence, path, first_line)
                sentence = []


def _columns(line: str) -> list[str]:
    """By tabs where there are any: a word may hold a blank, and no-break spaces are part of it."""
    line = line.rstrip("\r\n")
    return [part for part in (line.split("\t") if "\t" in line else line.split(" ")) if part.strip()]


def _sentence(lines: list[list[str]], path: Path, first_line: int) -> Row:
    where = {"where": f"{path.name}:{first_line}"}
    for number, columns in enumerate(lines, first_line):
        if len(columns) != len(lines[0]):
            found = f"{len(columns)} columns, but the sentence began with {len(lines[0])}"
            return where | {FAULT: f"{path}:{number}: {found}"}
    return (
        {str(index): list(values) for index, values in enumerate(zip(*lines, strict=True))}
        | where
        | {"first_line": first_line}
    )


def read_parallel(paths: Sequence[Path]) -> Iterator[Row]:
    """Two files of one text each line -> rows of `source` and `target`."""
    if len(paths) != 2:
        raise DataError(f"{len(paths)} files of parallel text; give two: data.train=[TRAIN.en,TRAIN.de]")
    sides = [read_lines(path) for path in paths]
    for number, (source, target) in enumerate(itertools.zip_longest(*sides), 1):
        where = {"where": f"{paths[0].name}:{number}"}
        if source is None or target is None:
            short, long = (paths[0], paths[1]) if source is None else (paths[1], paths[0])
            yield where | {FAULT: f"{short}:{number}: the file ends here, and {long.name} goes on"}
            return
        empty = [path for path, text in zip(paths, (source, target), strict=True) if not text]
        yield where | (
            {FAULT: f"{empty[0]}:{number}: an empty line"} if empty else {"source": source, "target": target}
        )


def read_lines(path: Path) -> Iterator[str]:
    """Every line of a file, blank ones too."""
    if not path.expanduser().is_file():
        raise DataError(f"{path}: no such file")
    with _opened(path.expanduser(), newline="\n") as file:
        for line in file:
            yield line.strip()


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
    "conll": _column_file,
    "iob2": _column_file,
}
