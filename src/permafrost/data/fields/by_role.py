"""Rows of any columns -> rows by role, each of them checked; all that is wrong is gathered on the way."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from permafrost.data.fields.columns import columns_of
from permafrost.data.fields.roles import ROLES, Fields, Names, as_text
from permafrost.data.files.readers import FAULT, Row
from permafrost.data.problems import EXCERPT, SHOWN, Problem, ProblemLog, fault, problems_of
from permafrost.data.rows import SLICE_ROWS, WHERE
from permafrost.errors import DataError

if TYPE_CHECKING:
    from permafrost.data.quality.examination import Findings

Rows = Iterable[Row]
Change = Callable[[Fields], Fields | None]  # None leaves the row out
MISSING_NUMBERS = {"", "nan", "none", "null", "na", "n/a"}
PEEKED = 100  # rows, to see which columns there are
WHOLE_FILE = {"E101", "E102", "E103", "E301"}  # no row of it can be used


@dataclass(frozen=True, kw_only=True)
class RowPolicy:
    """What becomes of rows that cannot be used. `error` tells all of them and ends; `quarantine` puts them aside, up
    to a share of `max_bad_fraction`. `missing_text` stands in for no text; with None such rows are left out. Labels
    and targets that are not there are kept as null where they are to be filled in later."""

    on_bad_rows: Literal["error", "quarantine"] = "error"
    max_bad_fraction: float = 0.01
    missing_text: str | None = None
    keep_missing_labels: bool = False
    keep_missing_targets: bool = False


@dataclass
class Notes:
    """What was found and decided while reading: sentences for the user to see, problems, how many rows were put aside
    (and those rows, if it `keeps_quarantined`), how many rows each step of cleaning changed, and how sure each training
    row's label is, where that was asked."""

    lines: list[str] = field(default_factory=list)
    log: ProblemLog = field(default_factory=ProblemLog)
    keeps_quarantined: bool = True
    num_quarantined: int = 0
    quarantined: list[dict[str, Any]] = field(default_factory=list)
    cleaned: Counter[str] = field(default_factory=Counter)
    findings: "Findings | None" = None
    row_quality: np.ndarray | None = None  # (training rows,), 0 to 1

    def add(self, line: str) -> None:
        if line not in self.lines:
            self.lines.append(line)

    def put_aside(self, row: dict[str, Any]) -> None:
        self.num_quarantined += 1
        if self.keeps_quarantined:
            self.quarantined.append(row)


@dataclass
class BadRows:
    """Those of a split that cannot be used: how many, and all that is wrong with them."""

    count: int = 0
    log: ProblemLog = field(default_factory=ProblemLog)

    def add(self, problems: Sequence[Problem]) -> None:
        self.count += 1
        self.log.add(*problems)

    @property
    def is_of_whole_file(self) -> bool:
        return bool(self.log.counts.keys() & WHOLE_FILE)


def rows_by_role(
    rows: Rows,
    roles: Sequence[str],
    columns: Mapping[str, Any],
    split: str,
    notes: Notes,
    policy: RowPolicy | None = None,
    change: Change | None = None,
) -> Iterator[pa.Table]:
    """Pick each role's columns, check their values and `change` them, slice by slice.

    Raises:
        DataError: what is wrong with the rows, the first of each kind with their places.
    """
    rows, present = with_columns(rows)
    checked = _checked_rows(rows, present, roles, columns, split, notes, policy or RowPolicy(), change or dict)
    while part := list(itertools.islice(checked, SLICE_ROWS)):
        fields = {name: kind for role in roles for name, kind in ROLES[role].fields.items() if name in part[0]}
        yield pa.Table.from_pylist(part, pa.schema({WHERE: pa.string()} | fields))


def with_columns(rows: Rows) -> tuple[Rows, Row]:
    """The rows, and one that has every column of the first PEEKED: an object may leave out what it has no value for."""
    of_file = _until_damaged(rows)
    first = list(itertools.islice(of_file, PEEKED))
    present: Fields = {}
    for row in first:
        present |= {} if is_faulty(row) else {name: value for name, value in row.items() if name not in present}
    return itertools.chain(first, of_file), present


def _checked_rows(
    rows: Rows,
    present: Row,
    roles: Sequence[str],
    columns: Mapping[str, Any],
    split: str,
    notes: Notes,
    policy: RowPolicy,
    change: Change,
) -> Iterator[Fields]:
    """Rows by role; those without text are left out, counted and said."""
    names: dict[str, Names] = {}
    filled: list[str] = []  # places of rows that had no text
    bad, types, left_out, seen = BadRows(), defaultdict[str, dict[str, str]](dict), [], 0
    for seen, row in enumerate(rows, 1):  # noqa: B007 - it counts
        try:
            if is_faulty(row):
                raise row[FAULT]
            names = names or _names_by_role(roles, columns, row, present or row, notes)
            made = _made(row, names, policy, change, filled)
            _note_type(row, names, types)
        except DataError as error:
            problems = [with_excerpt(problem, row) for problem in problems_of(error)]
            bad.add(problems)
            notes.log.add(*problems)
            if policy.on_bad_rows == "quarantine":
                notes.put_aside(quarantine_line(problems, row, split))
            if bad.is_of_whole_file:
                break
        else:
            if made is None:
                left_out.append(row[WHERE])
                message = f"no text in a row of {split}"
                problem = Problem(code="W101", where=row[WHERE], message=message, fix="fill it in")
                notes.log.add(with_excerpt(problem, row))
            elif not bad.count or policy.on_bad_rows == "quarantine":
                yield made
    _judge(bad, seen, split, policy)
    if filled:
        first = f"the first at {filled[0]}"
        notes.add(f"{split}: filled in {policy.missing_text!r} for {len(filled):,} rows without text, {first}")
    _tell(left_out, types, split, notes)


def _made(row: Row, names: Mapping[str, Names], policy: RowPolicy, change: Change, filled: list[str]) -> Fields | None:
    """By role and changed; None of a row that has no text, or none left. `filled` gets the place of one that was given
    its text."""
    if not _has_text(row, names):
        if policy.missing_text is None or not _text_columns(names):
            return None
        row = _with_text(row, names, policy.missing_text)
        filled.append(row[WHERE])
    return change(_by_role(row, names, policy))


def _until_damaged(rows: Rows) -> Iterator[Row]:
    """A file that ends in the middle is one more problem, after those of its rows."""
    try:
        yield from rows
    except DataError as error:
        yield {WHERE: problems_of(error)[0].where, FAULT: error}


def is_faulty(row: Row) -> bool:
    """Not by the name alone: a file may have a column that is called so."""
    return isinstance(row.get(FAULT), DataError)


def with_excerpt(problem: Problem, row: Row) -> Problem:
    """Of what stands in the row, where the problem does not say."""
    shown = " | ".join(as_text(value)[:EXCERPT] for name, value in row.items() if name not in (WHERE, FAULT))
    return problem if problem.text else replace(problem, text=shown)


def quarantine_line(problems: Sequence[Problem], row: Row, split: str) -> dict[str, Any]:
    """A line of quarantine.jsonl: the row with all it holds, or the text that could not be read as one."""
    content = (
        {name: value for name, value in row.items() if name not in (WHERE, FAULT)} if is_faulty(row) else dict(row)
    )
    told = {"code": problems[0].code, "problem": "\n".join(map(str, problems))}
    return {"split": split, **told, "row": content or {"text": problems[0].text}}


def _judge(bad: BadRows, seen: int, split: str, policy: RowPolicy) -> None:
    """
    Raises:
        DataError: there are bad rows, or more of them than may be put aside.
    """
    if bad.count and policy.on_bad_rows == "quarantine" and not bad.is_of_whole_file:
        if bad.count <= policy.max_bad_fraction * seen:
            return
        share = f"{bad.count:,} of {seen:,} rows of {split} cannot be used, more than data.max_bad_fraction="
        shown = "\n".join(str(problem) for problems in bad.log.first.values() for problem in problems)
        raise DataError(f"{share}{policy.max_bad_fraction:g}\n{shown}")
    bad.log.raise_errors()


def _tell(left_out: Sequence[str], types: Mapping[str, Mapping[str, str]], split: str, notes: Notes) -> None:
    if left_out:
        notes.add(f"{split}: left out {len(left_out)} rows without text, the first at {left_out[0]}")
    for label, kinds in types.items():
        if len(kinds) > 1:
            found, where = f"{split} has the label {label!r} as {' and '.join(sorted(kinds))}", list(kinds.values())[1]
            fix = "write it one way; they are read as one"
            notes.log.add(Problem(code="W201", where=where, message=found, fix=fix, text=label))


def _names_by_role(
    roles: Sequence[str], columns: Mapping[str, Any], row: Row, present: Row, notes: Notes
) -> dict[str, Names]:
    """By the first row, or where that lacks one, by the rows after it."""
    names = {}
    for role in roles:
        try:
            names[role], found = columns_of(role, columns, row)
        except DataError:
            names[role], found = columns_of(role, columns, present)
        if found:
            notes.add(found)
    return names


def _text_columns(names: Mapping[str, Names]) -> list[str]:
    return [name for role in ("text", "source") for name in names.get(role, ())]


def _has_text(row: Row, names: Mapping[str, Names]) -> bool:
    """Whether there is anything to read; what there is to answer with is checked by its role."""
    if names.get("tagged") and all(row.get(name) == [] for name in names["tagged"]):
        return False
    return all(as_text(row.get(name)).strip() for name in _text_columns(names))


def _with_text(row: Row, names: Mapping[str, Names], text: str) -> Row:
    return row | {name: row.get(name) if as_text(row.get(name)).strip() else text for name in _text_columns(names)}


def _note_type(row: Row, names: Mapping[str, Names], types: defaultdict[str, dict[str, str]]) -> None:
    """1 and "1" are one label here, and may not have been meant so; of each type the first place."""
    if "label" in names:
        value = row.get(names["label"][0])
        if len(types) < SHOWN * 10:  # labels are few; what has more is a mistake told elsewhere
            kind = "text" if isinstance(value, str) else type(value).__name__
            types[str(value).strip()].setdefault(kind, row[WHERE])


def _by_role(row: Row, names: Mapping[str, Names], policy: RowPolicy) -> Fields:
    fields: Fields = {WHERE: row[WHERE]}
    for role, columns in names.items():
        given = as_text(row.get(columns[0])).strip()
        if role == "label" and policy.keep_missing_labels and not given:
            fields["label"] = None
        elif role == "number" and policy.keep_missing_targets and given.lower() in MISSING_NUMBERS:
            fields["target"] = None
        else:
            fields |= ROLES[role].read(row, columns)
    if "turns" in fields and "acts" in fields and len(fields["turns"]) != len(fields["acts"]):
        found = f"{len(fields['turns'])} turns, and {len(fields['acts'])} labels for them"
        raise fault("E406", row[WHERE], found, "give each turn one label")
    return fields
