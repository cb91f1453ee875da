"""What is wrong with rows: each problem with a code, its place, what to do about it; and a log of all of them."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from permafrost.errors import DataError

SHOWN = 20  # of each code, on the screen
EXCERPT = 60  # characters
# In every report of such a run: its scores are of rows that it may have learned by heart.
LEAKS_ALLOWED = "data.allow_leaks=true: rows that stand in validation or test were left in train"

# A code says one thing for ever. E ends a run, or puts a row aside (data.on_bad_rows=quarantine); W is only told.
CODES = {
    "E101": "no such file, or a format that is not known",
    "E102": "no rows",
    "E103": "a damaged container: gzip, parquet, or JSON that is no list",
    "E104": "bytes that are not UTF-8",
    "E105": "a NUL byte",
    "E201": "more or fewer columns than the header, or than the other words of the sentence",
    "E202": "a quote that is not closed where it should be",
    "E203": "a line that is no JSON",
    "E204": "JSON that is no object",
    "E205": "two files of parallel text that do not fit",
    "E301": "no column for what the task asks",
    "E302": "two columns of one name",
    "E401": "no label",
    "E402": "not a number",
    "E403": "half a character",
    "E404": "nothing to write",
    "E405": "turns that are no dialogue",
    "E406": "labels that do not fit the turns",
    "E407": "words and tags that do not fit, a blank word, or a tag that is none",
    "E408": "an object where a text is asked for",
    "E501": "too few labels to tell apart",
    "E502": "a label that train has not",
    "E503": "a label that task.labels does not name",
    "E504": "every target is the same",
    "E505": "a split without rows",
    "W101": "a row without text, left out",
    "W201": 'one label of two types, as 1 and "1"',
    "W202": "labels that differ in case, blanks or digits alone",
    "W203": "a label with one training row",
    "W204": "a label that test or validation has not",
    "W301": "one text with different labels",
    "W302": "a copy of another row",
    "W303": "nearly a copy of another row",
    "W304": "a training row that stands in validation or test",
    "W305": "a training row that nearly stands in validation or test",
    "W401": "longer than the model's window",
    "W402": "text that was decoded wrongly",
    "W403": "control characters",
    "W404": "a label that is probably wrong",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """`where` is file:line, with a column or a word where one is known; `fix` is what to type or to change; `text` is
    what stands there."""

    code: str
    where: str
    message: str
    fix: str = ""
    text: str = field(default="", repr=False)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.message}{f'; {self.fix}' if self.fix else ''}"

    @property
    def excerpt(self) -> str:
        return self.text if len(self.text) <= EXCERPT else f"{self.text[: EXCERPT - 1]}…"

    @property
    def severity(self) -> str:
        return "error" if self.code.startswith("E") else "warning"


def fault(code: str, where: str, message: str, fix: str = "", text: Any = "") -> DataError:
    """An error that carries its problem, for whoever wants more of it than a sentence."""
    text = text if isinstance(text, str) else repr(text)
    return DataError(Problem(code=code, where=where, message=message, fix=fix, text=text))


def problems_of(error: DataError) -> list[Problem]:
    """One, or several of a single row."""
    return [given if isinstance(given, Problem) else _of_sentence(given) for given in error.args]


def _of_sentence(told: object) -> Problem:
    return Problem(code="E103", where="", message=str(told))


def as_json(problem: Problem) -> dict[str, str]:
    """With ASCII escapes, so that half a character can be told of, too."""
    plain = {name: value for name, value in vars(problem).items() if name != "text"}
    return {"severity": problem.severity, **plain, "excerpt": problem.excerpt}


@dataclass
class ProblemLog:
    """Counts every problem, keeps the first SHOWN of each code, and writes all of them to `file` as they come."""

    file: TextIO | None = None
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[Problem]] = field(default_factory=dict)

    def add(self, *problems: Problem) -> None:
        for problem in problems:
            self.counts[problem.code] += 1
            kept = self.first.setdefault(problem.code, [])
            if len(kept) < SHOWN:
                kept.append(problem)
            if self.file is not None:
                self.file.write(json.dumps(as_json(problem)) + "\n")

    @property
    def errors(self) -> int:
        return sum(count for code, count in self.counts.items() if code.startswith("E"))

    def raise_errors(self) -> None:
        """
        Raises:
            DataError: the first SHOWN errors of each code, a line for each, and how many more there are.
        """
        lines = [str(problem) for code in sorted(self.first) if code.startswith("E") for problem in self.first[code]]
        if lines:
            left_out = self.errors - len(lines)
            more = [f"and {left_out:,} more; permafrost check-data lists all"] if left_out else []
            raise DataError("\n".join([*lines, *more]))

    def lines(self) -> Iterator[str]:
        """For people: each code with its count and meaning, and its first problems."""
        for code in sorted(self.first):
            yield f"{code}  {self.counts[code]:,} x  {CODES[code]}"
            for problem in self.first[code]:
                told = f"  {problem}{f'  [{problem.excerpt}]' if problem.excerpt else ''}"
                yield told.encode("utf-8", "backslashreplace").decode("utf-8")  # half a character has no other form
            if self.counts[code] > SHOWN:
                yield f"  and {self.counts[code] - SHOWN:,} more"
