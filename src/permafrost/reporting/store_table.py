"""The activation store's entries as a table."""

import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from permafrost.model.activation_store import read_manifest
from permafrost.model.store_directory import entries, entry_bytes, last_used


def print_store(root: Path) -> None:
    table = Table("entry", "model", "blocks", "dtype", "precision", "rows", "tokens", "MB", "last used", box=None)
    directories = entries(root)
    for directory in directories:
        table.add_row(*_cells(directory))
    total = sum(entry_bytes(directory) for directory in directories)
    table.title = f"{len(directories)} entries in {root}, {total / 2**20:,.0f} MB, the longest unused first"
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cells(directory: Path) -> list[str]:
    size = f"{entry_bytes(directory) / 2**20:,.0f}"
    used = datetime.fromtimestamp(last_used(directory)).isoformat(" ", "minutes")
    manifest = read_manifest(directory)
    if manifest is None:  # no run opens it, and it goes as others do
        return [directory.name, "of another version, or damaged", *[""] * 5, size, used]
    how = [str(manifest.depth), manifest.dtype, manifest.precision]
    return [directory.name, manifest.model, *how, f"{manifest.rows:,}", f"{manifest.tokens:,}", size, used]
