"""Files and directories that are complete or absent, whoever else writes them at the same time."""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def complete_or_absent(path: Path) -> Iterator[Path]:
    """Where to write it: a name beside `path`, moved there when the block ends, and removed when it fails.

    A directory that another process has put there meanwhile stays, and this one's is removed: who writes under one
    name writes the same.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if not (partial.is_dir() and path.is_dir()):
            _move(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def kept_json(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, which is asked once: from then on it is read."""
    if not path.exists():
        made = json.dumps(make())
        with complete_or_absent(path) as partial:
            partial.write_text(made, "utf-8")
    return json.loads(path.read_text("utf-8"))


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or the names in a directory, would outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(directory: Path) -> None:
    """What killed processes left half-written; only for a directory that is nobody else's."""
    for partial in directory.rglob("*.partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _move(partial: Path, path: Path) -> None:
    try:
        partial.replace(path)
    except OSError:
        if not path.is_dir():  # else another process was first by a moment
            raise
