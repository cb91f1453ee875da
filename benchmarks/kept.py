"""What was measured before, and whether it still holds: on this hardware, of these sources. Knows no model."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from stated import ROOT, hardware

Record = dict[str, Any]
SOURCES = ("src/permafrost", "conf", "train.py", "benchmarks/peers.py")  # of what a figure is made


def record(**of: Any) -> Record:
    """What is kept with a figure; `of` says of what it is."""
    return {"hardware": hardware(), "source": source(), "commit": commit(), "date": date.today().isoformat(), **of}


def holds(kept: Mapping[str, Any], **of: Any) -> bool:
    """Whether it would come out the same today, but for chance."""
    asked = {"hardware": hardware(), "source": source(), **of}
    return all(kept.get(key) == value for key, value in asked.items())


def read_kept(path: Path, **of: Any) -> Record | None:
    """What was measured and written there with its record; None where it holds no more, or was never measured."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept if holds(kept, **of) else None


def cleared(directory: Path, **of: Any) -> Record:
    """The record of what lies in the directory, which is emptied where it holds no more. It lies beside it, as runs
    make their directories themselves."""
    path = directory.with_name(f"{directory.name}.measured.json")
    if kept := read_kept(path, **of):
        return kept
    shutil.rmtree(directory, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = record(**of)
    path.write_text(json.dumps(new, indent=1) + "\n")
    return new


def days(kept: Iterable[Mapping[str, Any]]) -> str:
    """On which it was measured: one, or the first and the last; today, where nothing was yet."""
    found = sorted(day for each in kept for day in each["date"].split(" to ")) or [date.today().isoformat()]
    return " to ".join(dict.fromkeys([found[0], found[-1]]))


def source() -> str:
    """A digest of what lies in this clone, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(path for name in SOURCES for path in files_of(ROOT / name)):
        digest.update(path.relative_to(ROOT).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def files_of(path: Path) -> Iterator[Path]:
    found = [path] if path.is_file() else path.rglob("*")
    return (each for each in found if each.is_file() and "__pycache__" not in each.parts)


def commit() -> str:
    """For who looks it up: its name, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # there is no git
        return "unknown"
