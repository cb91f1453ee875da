"""Files that the `permafrost` command is given, and those that it writes: rows, a document, answers."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

from permafrost.errors import DataError


def read_table(path: Path, roles: Any, text: list[str] | None, label: str | None = None) -> Any:
    import pyarrow as pa

    from permafrost.data.readers import read_rows
    from permafrost.data.sources import Notes, rows_by_role

    columns = {"text": text, "source": text, "label": label, "target": label}
    notes = Notes()
    parts = list(rows_by_role(read_rows(path), roles, columns, path.name, notes))
    if not parts:
        raise DataError(f"{path}: no row has a text")
    table = pa.concat_tables(parts)
    for line in notes.lines:
        print(line, file=sys.stderr)
    return table


def read_document(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # as it is: an offset counts every character
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from None
    if not text.strip():
        raise DataError(f"{path}: the document has no text")
    return text


def write_answers(rows: list[dict[str, Any]], output: Path | None) -> None:
    """JSON lines to the screen or a .jsonl file, or a .csv file."""
    if output is None or output.suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        sys.stdout.write(text) if output is None else output.write_text(text, "utf-8")
    elif output.suffix == ".csv":
        with output.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        raise DataError(f"--output {output}: the answers are written as .jsonl or .csv")
