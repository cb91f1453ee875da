"""The activation store's entries as a table."""

import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from permafrost.model.activation_store import USED, read_manifest
from permafrost.model.store_directory import entries, entry_bytes


def print_store(root: Path) -> None:
    table = Table("entry", "model", "blocks", "dtype", "precision", "rows", "tokens", "MB", "last used", box=None)
    directories = entries(root)
    for directory in directories:
        table.add_row(*_cells(directory))
    total = sum(entry_bytes(directory) for directory in directories)
    table.title = f"{len(directories)} entries in {root}, {total / 2**20:,.0f} MB, the longest unused first"
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _cells(directory: Path) -> list[str]:
    manifest = read_manifest(directory)
    assert manifest is not None, "entries() gives complete ones"
    used = datetime.fromtimestamp((directory / USED).stat().st_mtime).isoformat(" ", "minutes")
    counts = [f"{manifest.rows:,}", f"{manifest.tokens:,}", f"{entry_bytes(directory) / 2**20:,.0f}"]
    how = [str(manifest.depth), manifest.dtype, manifest.precision]
    return [directory.name, manifest.model, *how, *counts, used]
