"""What reading rows of a store costs, by calls and from a mapped file: run by `python benchmarks/run.py row_reads`.

Without torch: what is measured is started in a process of its own each time.
"""

import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from materials import apart
from pairs import spelled
from stated import hardware, publish

from permafrost.compression.measure import resident_mb
from permafrost.storage.ragged import RaggedArray

PROCESSES = 5


def row_reads() -> None:
    """Why ragged.py reads, and does not map."""
    ways = {"read": RaggedArray.in_file, "mapped": mapped_rows}
    count, tokens, channels = 4000, 50, 768
    lines = ["# Rows of a store, read and mapped", ""]
    lines += [f"{hardware()}; {date.today()}; `python benchmarks/run.py row_reads`; {count:,} rows of {tokens} tokens,"]
    lines += [f"{channels} float16 each, copied once in random order, the file in the system's cache; of {PROCESSES}"]
    lines += ["processes each the median (smallest to largest), by their own CPU time.", ""]
    lines += ["| | us a row | resident memory gained, MB |", "|---" * 3 + "|"]
    figures = {}
    with TemporaryDirectory(prefix="row_reads-") as directory:
        path = Path(directory) / "states.bin"
        np.ones((count * tokens, channels), np.float16).tofile(path)
        offsets = np.arange(count + 1) * tokens
        for name, way in ways.items():
            measured = [apart(cost_of_reading, way, path, offsets, channels) for _ in range(PROCESSES)]
            figures[name] = {key: round(statistics.median(each[key] for each in measured), 1) for key in measured[0]}
            cells = [spelled([each[key] for each in measured], 1) for key in measured[0]]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    publish("row_reads", lines, figures)


def mapped_rows(path: Path, offsets: np.ndarray, dtype: Any, channels: int) -> RaggedArray:
    return RaggedArray(np.memmap(path, dtype, "r", shape=(int(offsets[-1]), channels)), offsets)


def cost_of_reading(
    way: Callable[..., RaggedArray], path: Path, offsets: np.ndarray, channels: int
) -> dict[str, float]:
    rows = way(path, offsets, np.float16, channels)
    before, start = resident_mb(), time.process_time()
    for row in np.random.default_rng(0).permutation(len(rows)):
        rows[row].tobytes()
    return {"us": 1e6 * (time.process_time() - start) / len(rows), "mb": resident_mb() - before}
