"""The frozen part's one pass over the data, and the stores that training then reads."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from permafrost.data.tokens.batching import TokenBatching, ordered_batches, pad_right
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.activation_store import (
    ActivationStore,
    Dtype,
    Manifest,
    being_built,
    entry_directory,
    open_entry,
    remove,
    row_digests,
    sole_builder,
    sound_entry,
    trunk_key,
    write_entry,
    writing_in,
)
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.store_directory import make_room
from permafrost.training.hardware import autocast
from permafrost.training.store_worth import Reads, is_worth_it

# Per batch of the pass: more than a training step has, as no gradient is kept. On a CPU with AMX 2,048 are slower by a
# tenth, and 8,192 are hardly faster for twice the memory (benchmarks/results/trunk_pass.md).
PASS_TOKENS = {"cpu": 4096, "cuda": 16384}


@dataclass(frozen=True, kw_only=True)
class StoreOptions:
    mode: Literal["auto", "on", "off"]
    directory: Path
    dtype: Dtype
    max_gb: float


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
        self.frozen_states, self.window, self.reads_apart = model.frozen_states, model.window, model.reads_apart
        self.name, self.precision, self.device = name, precision, device
        self.channels = self.backbone.config.n_embd
        model.to(device)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[np.ndarray]) -> Tensor:
        """B rows of token ids, T in the longest -> (B, T, C)"""
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        with autocast(self.precision, self.device.type):
            return self.frozen_states(pad_right(rows).to(self.device), lengths)

    def of(self, split: TokenizedSplit, rows: np.ndarray) -> Tensor:
        """(B,) row positions -> (B, T, C)"""
        return self([split.input_ids[row] for row in rows])

    def manifest(self, lengths: np.ndarray, dtype: Dtype) -> Manifest:
        return Manifest(
            model=self.name,
            depth=self.depth,
            dtype=dtype,
            precision=self.precision,
            channels=self.channels,
            rows=len(lengths),
            tokens=int(lengths.sum()),
        )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one part of a run would read: an entry of the store for each of its splits."""

    part: FrozenPart
    splits: Mapping[str, TokenizedSplit]
    options: StoreOptions
    trunk: dict[str, Any]
    digests: Mapping[str, np.ndarray]
    directories: Mapping[str, Path]
    manifests: Mapping[str, Manifest]


def what_to_store(
    part: FrozenPart, splits: Mapping[str, TokenizedSplit], options: StoreOptions, *, tokenizer: str
) -> Wanted:
    """`tokenizer` is a fingerprint."""
    how: dict[str, Any] = {
        "depth": part.depth,
        "dtype": options.dtype,
        "precision": part.precision,
        "tokenizer": tokenizer,
        "window": part.window if max(int(split.lengths.max()) for split in splits.values()) > part.window else None,
        "apart": part.reads_apart,
    }
    key = trunk_key(part.backbone, **how)
    digests = {name: row_digests(split.input_ids) for name, split in splits.items()}
    return Wanted(
        part=part,
        splits=splits,
        options=options,
        trunk={"key": key, **how},
        digests=digests,
        directories={name: entry_directory(options.directory, key, of_split) for name, of_split in digests.items()},
        manifests={name: part.manifest(split.lengths, options.dtype) for name, split in splits.items()},
    )


def open_stores(
    wanted: Mapping[str, Wanted], *, reads: Mapping[str, Reads], say: Callable[[str], None]
) -> dict[str, Stores]:
    """The stores of all parts' splits, built first where they are missing; none, with a line why, where they do not pay
    or cannot be written. `reads` is for parts of `mode="auto"`.

    Raises:
        ResourceError: `mode="on"`, and they do not fit `max_gb` or the disk, or cannot be written.
        ConfigError: `mode="on"`, and `options.dtype` cannot hold a state.
    """
    directories = {directory for of_part in wanted.values() for directory in of_part.directories.values()}
    found = {directory: sound_entry(directory) for directory in directories}
    try:
        check_room(list(wanted.values()), [directory for directory, store in found.items() if store is None])
    except ResourceError as error:
        if any(of_part.options.mode == "on" for of_part in wanted.values()):
            raise
        say(f"store off: {error}")
        return {name: Stores(trunk=of_part.trunk) for name, of_part in wanted.items()}
    return {name: open_part(of_part, found, reads.get(name), say) for name, of_part in wanted.items()}


def check_room(wanted: Sequence[Wanted], missing: Sequence[Path]) -> None:
    """For all parts together, as none is to make room for another.

    Raises:
        ResourceError: they are more than `max_gb` or the disk has room for.
    """
    root, max_gb = wanted[0].options.directory, wanted[0].options.max_gb
    sizes = {
        directory: of_part.manifests[name].num_bytes
        for of_part in wanted
        for name, directory in of_part.directories.items()
    }
    needed = sum(sizes.values())
    if needed > max_gb * 2**30:
        raise ResourceError(f"{needed / 2**30:.1f} GB of trunk output are more than store.max_gb={max_gb:g}")
    with writing_in(root):
        free, needed = shutil.disk_usage(root).free, sum(sizes[directory] for directory in missing)
    if needed > free:
        raise ResourceError(f"{needed / 2**30:.1f} GB are needed, and the disk has {free / 2**30:.1f}")


def open_part(
    wanted: Wanted, found: Mapping[Path, ActivationStore | None], reads: Reads | None, say: Callable[[str], None]
) -> Stores:
    """`found` has what there is of all parts."""
    stores, directories = Stores(trunk=wanted.trunk), wanted.directories
    there = {name: store for name, directory in directories.items() if (store := found[directory])}
    missing = {name: directory for name, directory in directories.items() if name not in there}
    try:
        if wanted.options.mode == "auto":
            assert reads is not None, "it depends on them"
            pays, why = is_worth_it(wanted, reads, there.get("train"), list(missing))
            say(f"store {'on' if pays else 'off'}: {why}")
            if not pays:
                return stores
        for name in unclaimed_first(missing):
            there[name] = open_or_build(wanted, name, stores, keep=list(found), say=say)
    except (ConfigError, ResourceError) as error:
        if wanted.options.mode == "on":
            raise
        say(f"store off: {error}")
        return stores
    stores.by_split = there
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


def open_or_build(
    wanted: Wanted, name: str, stores: Stores, *, keep: Sequence[Path], say: Callable[[str], None]
) -> ActivationStore:
    directory, store = wanted.directories[name], None
    while store is None:  # what was there, another run may have made room of before it was opened
        with sole_builder(directory, partial(say, f"store: another run computes {name}; waiting for it")):
            store = sound_entry(directory)
            if store is None:
                build(wanted, name, keep)
                stores.tokens_computed += wanted.manifests[name].tokens
                store = open_entry(directory)
    return store


def build(wanted: Wanted, name: str, keep: Sequence[Path]) -> None:
    """Compute and write one entry; the longest unused others make room for it. Where that fails nothing is left."""
    part, split, options, directory = wanted.part, wanted.splits[name], wanted.options, wanted.directories[name]
    manifest = wanted.manifests[name]
    remove(directory)  # what a killed build left, or damage
    make_room(options.directory, manifest.num_bytes, options.max_gb * 2**30, keep)
    batches = ordered_batches(split.lengths, TokenBatching(max_tokens=PASS_TOKENS[part.device.type]))
    states = ((rows, part.of(split, rows)) for rows in batches)
    shown = _with_progress(states, f"trunk: {name}", batches, split.lengths)
    try:
        write_entry(directory, manifest, split.input_ids.offsets, wanted.digests[name], shown)
    except BaseException:  # a signal, too
        remove(directory)
        raise


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
