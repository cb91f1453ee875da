"""The frozen part's one pass over the data: whether it pays to keep, and the stores that training then reads."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from permafrost.data.batching import TokenBatching, ordered_batches, pad_right
from permafrost.data.tokenization import TokenizedSplit
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.activation_store import (
    ActivationStore,
    Dtype,
    Manifest,
    as_stored,
    being_built,
    entry_directory,
    open_entry,
    remove,
    row_digests,
    sole_builder,
    sound_entry,
    trunk_key,
    write_entry,
)
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.store_directory import make_room
from permafrost.training.hardware import autocast

# Per batch of the pass: more than a training step has, as no gradient is kept. On a CPU with AMX 2,048 are slower by a
# tenth, and 8,192 are hardly faster for twice the memory (benchmarks/results/trunk_pass.md).
PASS_TOKENS = {"cpu": 4096, "cuda": 16384}
SAMPLED_BATCHES, SAMPLED_TOKENS = 3, 1024
WORTH_SECONDS = 1.0  # of computing in all: with less, chance would decide, and with it the last bits of a score
SHARED_READS = 1e6  # a sweep's trials read on: what one pass costs is of no matter


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    mode: Literal["auto", "on", "off"]
    directory: Path
    dtype: Dtype
    max_gb: float


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds per token."""

    compute: float
    write: float
    read: float


@dataclass
class Stores:
    """Per split what is stored of it; none where the frozen part is computed each time."""

    by_split: dict[str, ActivationStore] = field(default_factory=dict)
    trunk: dict[str, Any] | None = None  # what finds its entries again: the key, and what went into it
    tokens_computed: int = 0


class FrozenPart:
    """The trunk of `model` as a function of token ids, as training would run it: same precision, no dropout."""

    def __init__(self, model: GPT2WithHead, *, name: str, precision: str, device: torch.device):
        self.backbone, self.depth = model.transformer, model.freezing.blocks
        self.below_the_cut, self.window = model.below_the_cut, model.window
        self.name, self.precision, self.device = name, precision, device
        self.channels = self.backbone.config.n_embd
        model.to(device)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[np.ndarray]) -> Tensor:
        """B rows of token ids, T in the longest -> (B, T, C)"""
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        with autocast(self.precision, self.device.type):
            return self.below_the_cut(pad_right(rows).to(self.device), lengths)


def open_stores(
    part: FrozenPart,
    splits: Mapping[str, TokenizedSplit],
    options: StoreOptions,
    *,
    tokenizer: str,
    reads: Mapping[str, float],
    say: Callable[[str], None],
) -> Stores:
    """The stores of all splits, built first where they are missing; none, with a line why, where they do not pay.

    `reads` is how often each split will be read; `tokenizer` a fingerprint.

    Raises:
        ResourceError: `mode="on"`, and they do not fit `max_gb` or the disk.
        ConfigError: `mode="on"`, and `options.dtype` cannot hold a state.
    """
    how: dict[str, Any] = {
        "depth": part.depth,
        "dtype": options.dtype,
        "precision": part.precision,
        "tokenizer": tokenizer,
        "window": part.window if max(int(split.lengths.max()) for split in splits.values()) > part.window else None,
    }
    key = trunk_key(part.backbone, **how)
    digests = {name: row_digests(split.input_ids) for name, split in splits.items()}
    directories = {name: entry_directory(options.directory, key, digests[name]) for name in splits}
    stores = Stores(trunk={"key": key, **how})
    missing = [name for name, directory in directories.items() if sound_entry(directory) is None]
    if obstacle := lack_of_room(part, splits, options, missing):
        if options.mode == "on":
            raise ResourceError(obstacle)
        say(f"store off: {obstacle}")
        return stores
    try:
        if options.mode == "auto":
            pays, why = weigh(measure(part, splits["train"], options), splits, reads, missing)
            say(f"store {'on' if pays else 'off'}: {why}")
            if not pays:
                return stores
        for name in unclaimed_first(directories):
            directory = directories[name]
            with sole_builder(directory, partial(say, f"store: another run computes {name}; waiting for it")):
                store = sound_entry(directory)
                if store is None:
                    build(part, name, splits[name], directory, digests[name], options, keep=list(directories.values()))
                    stores.tokens_computed += int(splits[name].lengths.sum())
                    store = open_entry(directory)
            assert store is not None, "it was just written"
            stores.by_split[name] = store
    except ConfigError as error:
        if options.mode == "on":
            raise
        say(f"store off: {error}")
        stores.by_split.clear()
    return stores


def unclaimed_first(directories: Mapping[str, Path]) -> Iterator[str]:
    """What another run is building comes last, so that runs that start at once share the work split by split."""
    others = []
    for name, directory in directories.items():
        if being_built(directory):
            others.append(name)
        else:
            yield name
    yield from others


def build(
    part: FrozenPart,
    name: str,
    split: TokenizedSplit,
    directory: Path,
    digests: np.ndarray,
    options: StoreOptions,
    keep: list[Path],
) -> None:
    """Compute and write one entry; the longest unused others make room for it."""
    manifest = _manifest(part, split, options.dtype)
    remove(directory)  # what a killed build left, or damage
    make_room(options.directory, manifest.num_bytes, options.max_gb * 2**30, keep)
    batches = ordered_batches(split.lengths, TokenBatching(max_tokens=PASS_TOKENS[part.device.type]))
    states = ((rows, part(_token_ids(split, rows))) for rows in batches)
    shown = _with_progress(states, f"trunk: {name}", batches, split.lengths)
    write_entry(directory, manifest, split.input_ids.offsets, digests, shown)


def lack_of_room(
    part: FrozenPart, splits: Mapping[str, TokenizedSplit], options: StoreOptions, missing: list[str]
) -> str | None:
    import shutil

    sizes = {name: _manifest(part, split, options.dtype).num_bytes for name, split in splits.items()}
    needed = sum(sizes.values())
    if needed > options.max_gb * 2**30:
        return f"{needed / 2**30:.1f} GB of trunk output are more than store.max_gb={options.max_gb:g}"
    options.directory.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(options.directory).free, sum(sizes[name] for name in missing)
    return f"{needed / 2**30:.1f} GB are needed, and the disk has {free / 2**30:.1f}" if needed > free else None


def measure(part: FrozenPart, split: TokenizedSplit, options: StoreOptions) -> Rates:
    """Run the trunk on some batches; write its output where the store is, and read it back from the disk itself."""
    batches = ordered_batches(split.lengths, TokenBatching(max_tokens=SAMPLED_TOKENS))
    sampled = [batches[len(batches) * (2 * i + 1) // (2 * SAMPLED_BATCHES)] for i in range(SAMPLED_BATCHES)]
    inputs = [_token_ids(split, rows) for rows in sampled]
    part(inputs[0][:1])  # the first call sets up more than it computes
    tokens = sum(len(row) for rows in inputs for row in rows)
    compute, states = _seconds(lambda: [as_stored(part(ids), options.dtype) for ids in inputs])
    with TemporaryDirectory(prefix="probe-", dir=options.directory) as directory:
        path = Path(directory) / "states.bin"
        write, _ = _seconds(lambda: _write(path, states))
        read, _ = _seconds(lambda: path.read_bytes())
    return Rates(compute=compute / tokens, write=write / tokens, read=read / tokens)


def weigh(
    rates: Rates, splits: Mapping[str, TokenizedSplit], reads: Mapping[str, float], missing: list[str]
) -> tuple[bool, str]:
    """Whether reading beats computing over all that is to come, and the figures.

    What is computed in less than `WORTH_SECONDS` is not stored, so that the same small run goes the same way each time.
    """
    tokens = {name: int(split.lengths.sum()) for name, split in splits.items()}
    computing = sum(tokens[name] * reads[name] for name in splits) * rates.compute
    building = sum(tokens[name] for name in missing) * (rates.compute + rates.write)
    reading = building + sum(tokens[name] * reads[name] for name in splits) * rates.read
    per_token = f"a token takes {rates.compute * 1e6:.1f} us to compute, {rates.read * 1e6:.1f} us to read"
    total = f"about {reading:.0f} s with it and {computing:.0f} s without" if computing < 1e6 else "read by a sweep"
    if computing < WORTH_SECONDS:
        return False, f"{per_token}; less than a second in all"
    return reading < computing, f"{per_token}; {total}"


def _write(path: Path, states: list[np.ndarray]) -> None:
    """To the disk, and out of the system's cache where it lets us, as a store larger than memory will be."""
    with path.open("wb") as file:
        for state in states:
            file.write(state.data)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _with_progress(parts: Iterator[Any], title: str, batches: list[np.ndarray], lengths: np.ndarray) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task(f"{title}, tokens", total=int(lengths.sum()))
        for rows, states in parts:
            yield rows, states
            progress.update(bar, advance=int(lengths[rows].sum()))


def _manifest(part: FrozenPart, split: TokenizedSplit, dtype: Dtype) -> Manifest:
    return Manifest(
        model=part.name,
        depth=part.depth,
        dtype=dtype,
        precision=part.precision,
        channels=part.channels,
        rows=len(split),
        tokens=int(split.lengths.sum()),
    )


def _token_ids(split: TokenizedSplit, rows: np.ndarray) -> list[np.ndarray]:
    return [split.input_ids[row] for row in rows]


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = work()
    return time.perf_counter() - start, made
