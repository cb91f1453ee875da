"""Files that the `permafrost` command is given, and those that it writes: rows, a document, answers."""

import csv
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permafrost.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from permafrost.deployment.predictor import OwnFiles
    from permafrost.tasks.base import Task

# What is asked of a row, by its role; a role that is not here is the answer to it.
ASKED = {"text": "text", "source": "source", "turns": "history", "tagged": "words"}
# Keys of data.columns that --text, and those that --label stands for.
TEXTS, LABELS = ("text", "source", "turns", "token"), ("label", "target", "act", "tag")


def read_table(
    files: Path | Sequence[Path],
    roles: Sequence[str],
    text: list[str] | None = None,
    label: str | None = None,
    *,
    own: "OwnFiles | None" = None,
    file_format: str | None = None,
    only_asked: bool = False,
) -> "pa.Table":
    """A file's rows by role, or those of two files of parallel text. Columns are those that are named, or the run's
    `own` where this file has them too, or found by their names; of rows that are `only_asked` no answer is read."""
    import pyarrow as pa

    from permafrost.data.fields.by_role import Notes, rows_by_role, with_columns
    from permafrost.data.fields.columns import columns_here
    from permafrost.data.files.sources import read_file

    paths = [files] if isinstance(files, Path) else list(files)
    if len(paths) > 2:
        raise ConfigError(f"{len(paths)} files: give one, or the two of parallel text")
    chosen, notes = chosen_format(paths[0], file_format, own.format if own else None), Notes()
    try:
        given = str(paths[0]) if len(paths) == 1 else [str(path) for path in paths]
        rows, present = with_columns(read_file(given, chosen))
        columns: dict[str, Any] = (columns_here(own.columns, present) if own else {}) | named_columns(text, label)
        if only_asked:
            roles = asked_roles(roles, columns, present)
        parts = list(rows_by_role(rows, roles, columns, paths[0].name, notes))
    except DataError as error:
        raise DataError(by_options(str(error))) from None
    if not parts:
        raise DataError(f"{paths[0]}: no row has a text")
    for line in notes.lines:
        tell(by_options(line))
    return pa.concat_tables(parts)


def chosen_format(path: Path, asked: str | None, own: str | None) -> str | None:
    """The one that is `asked` for, or else that of the run's `own` files; by the file's name where there is neither.

    Raises:
        ConfigError: there is no such format.
    """
    from permafrost.data.files.readers import READERS, format_by_name

    if asked is not None and asked not in READERS:
        raise ConfigError(f"--format {asked}{nearest(asked, READERS)}")
    if asked is None and own is not None and READERS.get(format_by_name(path)) is not READERS.get(own):
        tell(f"{path.name} is read as {own}, as the run's own files were; --format says otherwise")
    return asked or own


def named_columns(text: list[str] | None, label: str | None) -> dict[str, Any]:
    """As data.columns: what `--text` and `--label` may be of any task."""
    texts = dict.fromkeys(TEXTS, text) if text else {}
    return texts | (dict.fromkeys(LABELS, label) if label else {})


def by_options(told: str) -> str:
    """With the options of this command in place of a run's keys."""
    options = dict.fromkeys(TEXTS, "--text") | dict.fromkeys(LABELS, "--label")
    told = re.sub(rf"data\.columns\.({'|'.join(options)})\b(=?)", lambda key: options[key[1]] + " " * len(key[2]), told)
    return re.sub(r"data\.format(=?)", lambda key: "--format" + " " * len(key[1]), told)


def asked_roles(roles: Sequence[str], columns: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Without the answers. What is to be tagged may be words, or a text that is split into words."""
    asked = [ASKED[role] for role in roles if role in ASKED] or ["text"]
    return ["text"] if asked == ["words"] and not has_words(columns, present) else asked


def has_words(columns: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    from permafrost.data.fields.columns import columns_of

    if not present:  # no row of the file can be read
        return False
    try:
        (name, *_), _ = columns_of("words", columns, present)
    except DataError:
        return False
    return isinstance(present[name], list)


def rows_to_answer(task: "Task", table: "pa.Table") -> list[dict[str, Any]]:
    """Rows of a file as the task is asked them: texts in its own form, and dialogues with the turn that is to come."""
    from permafrost.tasks.base import asked_rows
    from permafrost.tasks.dialogue import Dialogue

    if "text" in table.column_names:
        pairs = table["text_pair"].to_pylist() if "text_pair" in table.column_names else None
        return asked_rows(task, table["text"].to_pylist(), pairs)
    rows = table.to_pylist()
    return [task.to_answer(row["speakers"], row["turns"]) for row in rows] if isinstance(task, Dialogue) else rows


def check_labels(task: "Task", table: "pa.Table") -> None:
    """
    Raises:
        DataError: labels or types of tags that the run does not know, each with its place.
    """
    from permafrost.data.fields.labels import check_known
    from permafrost.tasks.base import classes_of

    check_known(table, classes_of(task))


def tell(line: str) -> None:
    """Beside the answers, which a program may read."""
    print(line, file=sys.stderr)


def read_document(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # as it is: an offset counts every character
    except OSError as error:
        raise DataError(f"{path}: {str(error.strerror).lower()}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from None
    if not text.strip():
        raise DataError(f"{path}: the document has no text")
    return text


def check_asked(text: str | None, file: Path | None, output: Path | None) -> None:
    """
    Raises:
        ConfigError: there is not one of a text and a file, or the answers cannot be written.
    """
    if (text is None) == (file is None):
        raise ConfigError(
            'give either a text or a file: permafrost predict RUN "text", or RUN --input FILE --output FILE'
        )
    if text is not None and output is not None:
        raise ConfigError("--output is for the rows of a file (--input); the answer to a text is printed")
    check_output(output)


def check_output(output: Path | None) -> None:
    """Before anything is answered.

    Raises:
        ConfigError: the answers cannot be written there.
    """
    if output is not None and output.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"--output {output}: the answers are written as .jsonl or .csv")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--output {output}: no directory {output.parent}; make it first")


def with_answer(row: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """Both in one object; where they have a name in common the answer stands under `prediction`."""
    return {**row, "prediction": answer} if row.keys() & answer.keys() else {**row, **answer}


def write_answers(rows: list[dict[str, Any]], output: Path | None) -> None:
    """JSON lines to the screen or a .jsonl file, or a .csv file."""
    if output is None or output.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        sys.stdout.write(text) if output is None else output.write_text(text, "utf-8")
        return
    with output.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: as_cell(value) for name, value in row.items()} for row in rows)


def as_cell(value: Any) -> Any:
    """Lists and objects as JSON, which a program can read back."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
