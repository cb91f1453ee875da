"""Which columns of a file fill a role: those that are named, or those whose names are usual."""

from collections.abc import Mapping, Sequence
from typing import Any

from permafrost.data.problems import fault
from permafrost.data.roles import ROLES, Names, Row
from permafrost.errors import nearest


def columns_of(role: str, given: Mapping[str, Any], row: Row) -> tuple[Names, str | None]:
    """The columns that fill a role, and a sentence where they were found by their names.

    Raises:
        DataError: a column that was named is not there, or none looks like the role.
    """
    present = _columns(row)
    keys = ROLES[role].column
    if all(given.get(key) is not None for key in keys):
        return [_named(name, key, row, present) for key in keys for name in _as_list(given[key])], None
    for names in ROLES[role].common:
        if all(name in row for name in names):
            written = " ".join(f"data.columns.{key}={_written(names)}" for key in keys[:1])
            if len(keys) > 1:
                written = " ".join(f"data.columns.{key}={name}" for key, name in zip(keys, names, strict=True))
            return names, f"{written}, found by its name"
    if "first_line" in row and role == "tagged":  # a column file: the word comes first and its tag last
        return [present[0], present[-1]], f"data.columns.token=0 data.columns.tag={present[-1]}, first and last column"
    if "first_line" in row and role == "words":
        return present[:1], "data.columns.token=0, first column"
    hint, found = nearest(keys[0], present).removeprefix("; "), f"no column looks like the {keys[0]}"
    raise fault("E301", row["where"], found, f"{hint}; set data.columns.{keys[0]}=NAME", ", ".join(present))


def columns_here(given: Mapping[str, Any], row: Row) -> dict[str, Any]:
    """Those of `given`, which were another file's, that this row's file has too."""
    present = _columns(row)
    return {key: names for key, names in given.items() if all(_column(n, present) in present for n in _as_list(names))}


def _columns(row: Row) -> list[str]:
    return [name for name in row if name not in ("where", "first_line")]


def _column(name: Any, present: Sequence[str]) -> str:
    """Of a column file, which has numbers for names, -1 is the last."""
    return present[name] if isinstance(name, int) and -len(present) <= name < 0 else str(name)


def _named(name: Any, key: str, row: Row, present: Sequence[str]) -> str:
    found = _column(name, present)
    if found not in present:
        hint, missing = nearest(found, present).removeprefix("; "), f"no column {found!r} for data.columns.{key}"
        raise fault("E301", row["where"], missing, hint, ", ".join(present))
    return found


def _as_list(names: Any) -> list[Any]:
    return list(names) if isinstance(names, (list, tuple)) else [names]


def _written(names: Names) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"
