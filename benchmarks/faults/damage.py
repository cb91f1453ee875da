"""Files that are cut off or changed, and whether that is found."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from faults.tiny_runs import run_whole, tiny_overrides

FLIPS = 200


def damage(root: Path) -> list[str]:
    """Of a checkpoint and of each file of an entry of the activation store."""
    from permafrost.training.sealed import fault_of

    run_whole(tiny_overrides(root), root / "whole")
    checkpoint = root / "whole" / "checkpoints" / "last.ckpt"
    entry = next((root / "whole.store").glob("*/manifest.json")).parent
    lines = ["| file | bytes | truncations, every 4 KiB and one byte | found | single bits flipped | found |"]
    lines.append("|---" * 6 + "|")
    lines.append(damaged(checkpoint, lambda: fault_of(checkpoint) is not None, "checkpoints/last.ckpt"))
    kept = root / "kept"
    shutil.copytree(entry, kept)
    for path in sorted(kept.iterdir()):
        if path.stat().st_size:
            lines.append(damaged(path, lambda: entry_is_found(kept, entry), f"the store's {path.name}"))
    return lines


def damaged(path: Path, is_found: Callable[[], bool], name: str) -> str:
    whole = bytearray(path.read_bytes())
    lengths = [0, 1, len(whole) - 1, *range(4096, len(whole), 4096)]
    cut = flipped = 0
    for length in lengths:
        path.write_bytes(whole[:length])
        cut += is_found()
    for bit in random.Random(0).choices(range(8 * len(whole)), k=FLIPS):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        flipped += is_found()
    path.write_bytes(whole)
    return f"| {name} | {len(whole):,} | {len(lengths)} | {cut} | {FLIPS} | {flipped} |"


def entry_is_found(damaged_entry: Path, entry: Path) -> bool:
    """Whether a run that opens a copy of it, and reads every row, would say so."""
    import numpy as np

    from permafrost.errors import ResourceError
    from permafrost.model.activation_store import check_entry, open_entry

    shutil.rmtree(entry, ignore_errors=True)
    shutil.copytree(damaged_entry, entry)
    store = open_entry(entry) if check_entry(entry) else None
    if store is None:
        return True
    try:
        store.padded(np.arange(store.manifest.rows))
    except ResourceError:
        return True
    return False
