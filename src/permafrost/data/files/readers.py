"""One file -> rows: csv, tsv, jsonl, json, parquet, txt and column files, each also gzipped. Errors name file and line.

A row that cannot be read has FAULT, a DataError, and what stands there as text, so that all faults of a file can be
told and nothing of it is lost.
"""

import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from permafrost.data.files.delimited import read_delimited
from permafrost.data.files.lines import Line, opened, text_lines, whole_text
from permafrost.data.problems import Problem, fault, problems_of
from permafrost.errors import DataError, nearest

FIRST_LINES = 1_000  # of a column file, by which it is told how many columns it has
Row = dict[str, Any]
FAULT = "fault"
BETWEEN_VALUES = re.compile(r"[\s,]*")
JSON_ROW = 'a row is an object: {"text": "...", "label": "..."}'


def read_rows(path: Path, file_format: str | None = None) -> Iterator[Row]:
    """Rows of a file one after the other, each with `where` (file:line). The format is the extension's unless given.

    Raises:
        DataError: no such file, an unknown format, no rows, a file that is damaged as a whole.
    """
    path = _existing(path)
    chosen = file_format or format_by_name(path)
    if chosen not in READERS:
        fix = f"set data.format={'|'.join(READERS)}"
        raise fault("E101", str(path), "cannot tell the format from the name", fix)
    rows = READERS[chosen](path)
    first = next(rows, None)
    if first is None:
        raise fault("E102", str(path), "the file has no rows", "give a file with some")
    return itertools.chain([first], rows)


def _existing(path: Path) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError as error:  # of a user whom this machine does not know
        raise fault("E101", str(path), str(error).rstrip("."), "give the path in full") from None
    if path.is_dir():
        raise fault("E101", str(path), "a directory, not a file", "give the path of a file in it")
    if not path.is_file():
        siblings = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings).removeprefix("; ") if siblings else "give the path as seen from here"
        raise fault("E101", str(path), "no such file", hint)
    return path


def format_by_name(path: Path) -> str:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == "gz" else (suffixes or [""])[-1]


def _faulty(problems: Sequence[Problem], path: Path, text: str) -> Row:
    """`text` is all of the row. Its place as other rows have it, which is by the file's name alone."""
    where = path.name + problems[0].where.removeprefix(str(path))
    return {"where": where, FAULT: DataError(*problems), "text": text}


def _delimited(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        for row in read_delimited(path, delimiter):
            yield _faulty([row], path, row.text) if isinstance(row, Problem) else row

    return read


def _json_lines(path: Path) -> Iterator[Row]:
    for line in text_lines(path):
        if line.problem:
            yield _faulty([line.problem], path, line.shown)
        elif line.text.strip():
            try:
                yield _as_row(_parse(line.text.rstrip(), path, line.number), path, line.number)
            except DataError as error:
                yield _faulty(problems_of(error), path, line.text.strip())


def _json_array(path: Path) -> Iterator[Row]:
    text = whole_text(path)
    if not text.strip():
        raise fault("E102", str(path), "the file is empty", "give a file with rows")
    values = _parse(text, path, 1, extra="one object a line is data.format=jsonl")
    if not isinstance(values, list):
        raise fault("E103", f"{path}:1", "expected a list of objects", "one object a line is data.format=jsonl")
    for place, value in zip(_places_of(text), values, strict=True):
        try:
            yield _as_row(value, path, place)
        except DataError as error:
            yield _faulty(problems_of(error), path, json.dumps(value))


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        batches = parquet.ParquetFile(_unpacked(path)).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield _decoded(row, path, number) | {"where": f"{path.name}:{number}"}
    except (pa.ArrowException, OSError, ValueError) as error:
        fix = "write it again; if it is another format, data.format says which"
        raise fault("E103", str(path), f"not a parquet file ({error})", fix) from error


def _decoded(row: Row, path: Path, number: int) -> Row:
    """Texts that were written as bytes, as texts."""
    try:
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in row.items()}
    except UnicodeDecodeError as error:
        found, fix = f"bytes that are not UTF-8 at place {error.start}", "write the column as text"
        return _faulty([Problem(code="E104", where=f"{path}:{number}", message=found, fix=fix)], path, repr(row))


def _unpacked(path: Path) -> Path | IO[bytes]:
    """A parquet file is read from its end, which a gzipped one does not have before it is unpacked."""
    if path.suffix != ".gz":
        return path
    with opened(path) as file:
        return io.BytesIO(file.read())


def _lines(path: Path) -> Iterator[Row]:
    for line in text_lines(path):
        if line.problem:
            yield _faulty([line.problem], path, line.shown)
        elif line.text.strip():
            yield {"text": line.text.strip(), "where": f"{path.name}:{line.number}"}


def _column_file(path: Path) -> Iterator[Row]:
    """A sentence a row, as in CoNLL's files: a word a line, its columns apart by blanks or tabs, a blank line between.

    Columns are named by their number, `"0"` the first; a document mark (-DOCSTART-) is as a blank line.
    """
    sentence: list[tuple[Line, list[str]]] = []
    lines = text_lines(path)
    first_lines = list(itertools.islice(lines, FIRST_LINES))
    counts = Counter(len(columns) for line in first_lines if (columns := _columns(line.text)))
    usual = counts.most_common(1)[0][0] if counts else 0
    for line in itertools.chain(first_lines, lines, [Line(0, "")]):
        columns = _columns(line.text)
        if columns and columns[0] != "-DOCSTART-":
            sentence.append((line, columns))
        elif sentence:
            yield _sentence(sentence, path, usual)
            sentence = []


def _columns(line: str) -> list[str]:
    """By tabs where there are any: a word may hold a blank, and no-break spaces are part of it."""
    line = line.rstrip("\r\n")
    return [part for part in (line.split("\t") if "\t" in line else line.split(" ")) if part.strip()]


def _sentence(words: list[tuple[Line, list[str]]], path: Path, usual: int) -> Row:
    """Where its words have not all as many columns, those are at fault that have not as many as is `usual`."""
    first, last, alike = words[0][0].number, words[-1][0].number, len({len(columns) for _, columns in words}) == 1
    found = [line.problem or (None if alike else _ragged(line, columns, usual, path)) for line, columns in words]
    if problems := [problem for problem in found if problem]:
        return _faulty(problems, path, _shown(words))
    values = zip(*(columns for _, columns in words), strict=True)
    named: Row = {str(index): list(column) for index, column in enumerate(values)}
    lines = f"{first}-{last}" if last > first else f"{first}"
    return named | {"where": f"{path.name}:{lines}", "first_line": first}


def _ragged(line: Line, columns: Sequence[str], usual: int, path: Path) -> Problem | None:
    if len(columns) == usual:
        return None
    found = f"{len(columns)} columns, where most words have {usual}"
    fix = "a sentence ends with a blank line, and every word has all columns"
    return Problem(code="E201", where=f"{path}:{line.number}", message=found, fix=fix, text=line.text.strip())


def _shown(words: list[tuple[Line, list[str]]]) -> str:
    return "\n".join(line.shown for line, _ in words)


def read_parallel(paths: Sequence[Path]) -> Iterator[Row]:
    """Two files of one text each line -> rows of `source` and `target`."""
    if len(paths) != 2:
        raise fault("E101", "", f"{len(paths)} files of parallel text", "give two: data.train=[TRAIN.en,TRAIN.de]")
    sides = [text_lines(_existing(path)) for path in paths]
    for number, (source, target) in enumerate(itertools.zip_longest(*sides), 1):
        where = {"where": f"{paths[0].name}:{number}"}
        problem = _problem_of_pair(paths, (source, target), number)
        texts = {name: line.shown.strip() for name, line in (("source", source), ("target", target)) if line}
        yield where | texts | ({FAULT: DataError(problem)} if problem else {})


def _problem_of_pair(paths: Sequence[Path], lines: Sequence[Line | None], number: int) -> Problem | None:
    for path, other, line in zip(paths, reversed(paths), lines, strict=True):
        if line is None:
            found = f"there is no such line, and {other.name} goes on"
            fix = "lines of one number belong together; look for one that was left out"
            return Problem(code="E205", where=f"{path}:{number}", message=found, fix=fix)
        if line.problem:
            return line.problem
        if not line.text.strip():
            fix = "remove the line in both files"
            return Problem(code="E205", where=f"{path}:{line.number}", message="an empty line", fix=fix)
    return None


def _places_of(text: str) -> Iterator[str]:
    """Of each value of an array the line that it begins on, and of several on one line also which row it is."""
    decoder, position, line, before = json.JSONDecoder(), text.index("[") + 1, 1, 0
    line += text.count("\n", 0, position)
    for number in itertools.count(1):
        start = BETWEEN_VALUES.match(text, position).end()  # type: ignore[union-attr]
        if text[start] == "]":
            return
        line += text.count("\n", position, start)
        yield f"{line}" if line != before else f"{line}, row {number}"
        position, before = decoder.raw_decode(text, start)[1], line
        line += text.count("\n", start, position)


def _parse(text: str, path: Path, line: int, *, extra: str = "an object a line: break the line between them") -> Any:
    """`extra` is what to do where one value is followed by another."""
    try:
        return json.loads(text)
    except RecursionError:
        raise fault(
            "E203", f"{path}:{line}", "the JSON is nested too deeply to be rows", JSON_ROW, text[:100]
        ) from None
    except json.JSONDecodeError as error:
        at, place = text[max(0, error.pos - 20) :], f"{path}:{line + error.lineno - 1}"
        fix = extra if error.msg == "Extra data" else _json_fix(error)
        raise fault("E203", place, f"not JSON: {error.msg} at column {error.colno}", fix, at) from None
    except ValueError as error:  # a number of thousands of digits
        raise fault("E203", f"{path}:{line}", f"not JSON that can be read: {error}", JSON_ROW, text[:100]) from None


def _json_fix(error: json.JSONDecodeError) -> str:
    """For the commonest mistakes."""
    if error.doc[error.pos :][:1] in ("}", "]") or error.msg.startswith("Illegal trailing comma"):
        return "remove the comma before it"
    return "names and texts stand in double quotes" if error.doc[error.pos :][:1] == "'" else JSON_ROW


def _as_row(value: Any, path: Path, line: int | str) -> Row:
    if not isinstance(value, dict):
        found = f"expected an object with columns, found {type(value).__name__}"
        raise fault("E204", f"{path}:{line}", found, JSON_ROW, value)
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
