"""Labels and targets that are not there: left out, or filled in by what the training rows have."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from permafrost.data.fields.by_role import Notes
from permafrost.data.problems import fault
from permafrost.data.rows import StoredRows, keep
from permafrost.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Missing:
    """`error` tells of each; `drop` leaves the row out; the others fill it in, in train alone: an answer that was
    made up is no answer to score by, so rows of validation and test are left out."""

    label: Literal["error", "drop", "most_frequent", "constant"] = "error"
    target: Literal["error", "drop", "median", "constant"] = "error"
    constant: str | float | None = None

    def __post_init__(self) -> None:
        if "constant" in (self.label, self.target) and self.constant is None:
            raise ConfigError("cleaning.missing: `constant` writes what cleaning.missing.constant=... says; set it")
        if self.target == "constant" and not isinstance(self.constant, int | float):
            raise ConfigError(f"cleaning.missing.constant={self.constant}: a target is a number")


def fill_missing(
    splits: Mapping[str, StoredRows], how: Missing, notes: Notes, directory: Path
) -> dict[str, StoredRows]:
    """The splits without nulls in `label` and `target`."""
    made = dict(splits)
    for field, policy in (("label", how.label), ("target", how.target)):
        if policy != "error" and field in splits["train"].column_names:
            value = None if policy == "drop" else _filling(splits["train"], field, policy, how.constant)
            for name in splits:
                made[name] = _settled(made[name], field, value if name == "train" else None, name, notes, directory)
    return made


def _filling(train: StoredRows, field: str, policy: str, constant: str | float | None) -> Any:
    present = [value for value in train[field].to_pylist() if value is not None]
    if not present and policy in ("median", "most_frequent"):
        fix = f"give its column with data.columns.{field}=NAME"
        raise fault({"label": "E401", "target": "E402"}[field], "", f"no training row has a {field}", fix)
    if policy == "constant":
        return float(constant) if field == "target" else str(constant)  # type: ignore[arg-type]
    return float(np.median(present)) if policy == "median" else Counter(present).most_common(1)[0][0]


def _settled(rows: StoredRows, field: str, value: Any, split: str, notes: Notes, directory: Path) -> StoredRows:
    missing = rows[field].null_count if rows.num_rows else 0
    if not missing:
        return rows
    done = (
        f"left out {missing:,} rows without" if value is None else f"filled in {value!r} for {missing:,} rows without"
    )
    notes.add(f"{split}: {done} a {field}")
    return keep(_without_nulls(rows, field, value), directory)


def _without_nulls(rows: StoredRows, field: str, value: Any) -> Iterator[pa.Table]:
    for part in rows.slices():
        column = part[field]
        if value is None:
            yield part.filter(column.is_valid())
        else:
            yield part.set_column(part.column_names.index(field), field, column.fill_null(value))
