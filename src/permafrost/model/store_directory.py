"""The directory of all entries: which there are, which make room for others, and what they know.

An entry and its files are model/activation_store.py.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from permafrost.model.activation_store import MANIFEST, ROWS, USED, ActivationStore, remove_if_free, sound_entry

ENTRY_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")


def entries(root: Path) -> list[Path]:
    """Complete entries, the longest unused first."""
    return sorted((path for path in _all_of(root) if (path / MANIFEST).exists()), key=last_used)


def last_used(directory: Path) -> float:
    """Seconds since the epoch; 0 where another process is removing the entry."""
    with suppress(FileNotFoundError):
        return (directory / USED).stat().st_mtime
    return 0.0


def entry_bytes(directory: Path) -> int:
    """0 where another process is removing it."""
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in directory.iterdir())
    return 0


def make_room(root: Path, num_bytes: int, max_bytes: float, keep: Sequence[Path] = ()) -> list[Path]:
    """Remove the longest unused entries until `num_bytes` more stay within `max_bytes`; returns what was removed.

    What others are building counts as it will be, since its file has that size from the start.
    """
    for directory in incomplete(root):
        remove_if_free(directory, only_incomplete=True)
    removed = []
    kept = sum(entry_bytes(directory) for directory in [*entries(root), *incomplete(root)])
    for directory in entries(root):
        if kept + num_bytes <= max_bytes:
            break
        size = entry_bytes(directory)
        if directory not in keep and remove_if_free(directory):
            kept -= size
            removed.append(directory)
    return removed


def clear(root: Path) -> int:
    """Remove every entry, complete or not, but those that are being built; returns the bytes that this freed."""
    freed = 0
    for directory in [*entries(root), *incomplete(root)]:
        size = entry_bytes(directory)
        freed += size if remove_if_free(directory) else 0
    for lock in root.glob("*.lock"):
        if ENTRY_NAME.fullmatch(lock.stem):
            remove_lock_if_free(lock)
    return freed


def remove_lock_if_free(path: Path) -> None:
    """Under the lock itself: who waits for it looks whether the file is still there, and makes another."""
    from filelock import FileLock

    with suppress(OSError), FileLock(path, timeout=0):
        path.unlink(missing_ok=True)


def incomplete(root: Path) -> list[Path]:
    """What is being built, and what killed builds left."""
    return [path for path in _all_of(root) if not (path / MANIFEST).exists()]


def _all_of(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if ENTRY_NAME.fullmatch(path.name)] if root.is_dir() else []


def known_rows(root: Path, trunk: str, digests: np.ndarray) -> list[tuple[ActivationStore, np.ndarray, np.ndarray]]:
    """Of the rows with these digests (N, 2), those that one trunk has stored, in whatever split: per entry the store,
    which of the N they are, and their positions in the entry."""
    found, missing = [], np.arange(len(digests))
    for directory in entries(root):
        store = sound_entry(directory) if directory.name.startswith(f"{trunk}-") else None
        if store is None:
            continue
        with suppress(FileNotFoundError):  # another process makes room just now
            positions = lookup(np.load(directory / ROWS), digests[missing])
            there = positions >= 0
            if there.any():
                found.append((store, missing[there], positions[there]))
            missing = missing[~there]
    return found


def lookup(digests: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(rows, 2), (N, 2) -> (N,): the position of each wanted digest, -1 where it is not there."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order].view([("high", np.uint64), ("low", np.uint64)])[:, 0]
    queries = np.ascontiguousarray(wanted).view(ordered.dtype)[:, 0]
    places = np.searchsorted(ordered, queries).clip(max=len(ordered) - 1)
    return np.where(ordered[places] == queries, order[places], -1)
