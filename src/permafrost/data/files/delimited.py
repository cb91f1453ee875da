"""Comma- and tab-separated files: rows of values, and those that a quote or a missing value spoils."""

import csv
import re
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from permafrost.data.files.lines import Line, text_lines
from permafrost.data.problems import Problem, fault

CARRIAGE_RETURN = re.compile(r"(?<=\r)(?!\n)(?=.)", re.DOTALL)  # with no line feed after it, which ends a line, too
SEPARATORS = {"\t": "data.format=tsv", ",": "data.format=csv", ";": "save it with commas between its columns"}
csv.field_size_limit(sys.maxsize)


class Record(NamedTuple):
    values: list[str]
    lines: list[Line]  # it was read from
    is_unclosed: bool = False  # a quote that its first line opens has no end, or one in the middle of later lines


def read_delimited(path: Path, delimiter: str) -> Iterator[dict[str, Any] | Problem]:
    """Rows by the header's names, each with `where`, or what is wrong with one.

    Raises:
        DataError: the file is empty, or its header is no text, or not that of columns.
    """
    # A tab-separated file quotes nothing: its texts hold quotes of their own.
    quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if delimiter == "\t" else {}
    found = records(text_lines(path), delimiter=delimiter, **quoting)
    header = next((record for record in found if record.values), None)
    if header is None:
        raise fault("E102", str(path), "the file is empty", "give a file with a header and rows")
    for problem in (line.problem for line in header.lines):
        if problem:
            raise fault(**vars(problem))
    _check_header(header, path)
    for record in found:
        if problem := _problem_of(record, len(header.values), path):
            yield problem
        elif record.values:
            where = f"{path.name}:{record.lines[-1].number}"
            yield dict(zip(header.values, record.values, strict=True)) | {"where": where}


def _check_header(header: Record, path: Path) -> None:
    """
    Raises:
        DataError: two columns of one name, of which one would be lost, or one that looks like several.
    """
    where, text = f"{path}:{header.lines[-1].number}", header.lines[0].text.strip()
    for name, count in Counter(header.values).items():
        if count > 1 and name.strip():
            fix = "give each a name of its own, or remove all but one"
            raise fault("E302", where, f"{count} columns are called {name!r}", fix, text)
    if len(header.values) == 1:
        for separator, fix in SEPARATORS.items():
            if separator in header.values[0]:
                raise fault(
                    "E301", where, f"one column, whose name looks like several between {separator!r}", fix, text
                )


def records(lines: Iterator[Line], **dialect: Any) -> Iterator[Record]:
    """After a quote that is not closed, the next line is read as if there had been none, so that no row is lost."""
    lines, waiting, taken, ended = _at_returns(lines), deque[Line](), list[Line](), False

    def feed() -> Iterator[str]:
        nonlocal ended
        while line := waiting.popleft() if waiting else next(lines, None):
            taken.append(line)
            yield line.text
        ended = True

    while waiting or not ended:
        for values in csv.reader(feed(), **dialect):
            record = Record(values, taken.copy())
            taken.clear()
            if _is_unclosed(record, dialect):
                waiting.extendleft(reversed(record.lines[1:]))
                record = Record(values, record.lines[:1], is_unclosed=True)
            yield record


def _is_unclosed(record: Record, dialect: dict[str, Any]) -> bool:
    """Told by the strict reader, as the usual one takes what it gets; lone lines may quote as they like."""
    if len(record.lines) == 1 and '"' not in record.lines[0].text:
        return False
    try:
        list(csv.reader((line.text for line in record.lines), strict=True, **dialect))
    except csv.Error as error:
        return len(record.lines) > 1 or "unexpected end" in str(error)
    return False


def _problem_of(record: Record, num_columns: int, path: Path) -> Problem | None:
    number, text = record.lines[-1].number, "\n".join(line.shown for line in record.lines).strip()
    for line in record.lines:
        if line.problem:
            return replace(line.problem, text=text)
    if record.is_unclosed:
        message, fix = "a quote is opened here and not closed where the text ends", 'write "" for a quote in a text'
        return Problem(code="E202", where=f"{path}:{number}", message=message, fix=fix, text=text)
    if record.values and len(record.values) != num_columns:
        message = f"{len(record.values)} columns, but the header has {num_columns}"
        is_long = len(record.values) > num_columns
        fix = "put quotes around texts that hold the separator" if is_long else "fill in those that are missing"
        return Problem(code="E201", where=f"{path}:{number}", message=message, fix=fix, text=text)
    return None


def _at_returns(lines: Iterator[Line]) -> Iterator[Line]:
    """Lines also end where a carriage return stands alone."""
    number = 0
    for line in lines:
        for text in CARRIAGE_RETURN.split(line.text) if "\r" in line.text.rstrip("\r\n") else [line.text]:
            number += 1
            yield Line(number, text, line.problem)
