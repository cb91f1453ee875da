"""Whether the store pays: what a token takes to compute, to write and to read here, and how often it will be read."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from permafrost.data.tokens.batching import Batching, ordered_batches
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.model.activation_store import STATES, ActivationStore, open_entry, write_entry, writing_in

if TYPE_CHECKING:
    from permafrost.training.trunk_pass import FrozenPart, Wanted

SAMPLED_BATCHES = 2
WORTH_SECONDS = 1.0  # of computing in all: with less, chance would decide, and with it the last bits of a score
SWEEP_TRIALS = 10  # that a sweep is taken to have: a trial knows neither how many there are, nor how many freeze alike


@dataclass(frozen=True, kw_only=True)
class Reads:
    """How often a run reads each split, in which batches it trains, and how many runs there are."""

    of_split: Mapping[str, float]
    batching: Batching
    runs: int = 1

    def tokens(self, splits: Mapping[str, TokenizedSplit]) -> float:
        return self.runs * sum(int(split.lengths.sum()) * self.of_split[name] for name, split in splits.items())


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds per token."""

    compute: float
    write: float
    read: float


def is_worth_it(
    wanted: "Wanted", reads: Reads, stored: ActivationStore | None, missing: Sequence[str]
) -> tuple[bool, str]:
    """Whether reading beats computing over all that is to come, and the figures; `stored` is what there is of train.

    What is computed in less than `WORTH_SECONDS` is not stored, so that the same small run goes the same way each time.
    """
    batches = sampled_batches(wanted.splits["train"].lengths, reads.batching)
    compute, states = measure_computing(wanted.part, wanted.splits["train"], batches)
    if compute * reads.tokens(wanted.splits) < WORTH_SECONDS:
        return False, f"a token takes {compute * 1e6:.1f} us to compute; less than a second in all"
    if stored and not missing:
        rates = Rates(compute=compute, write=0.0, read=measure_reading(wanted.part, stored, batches))
    else:
        write, read = measure_store(wanted, batches, states)
        rates = Rates(compute=compute, write=write, read=read)
    return weigh(rates, wanted.splits, reads, missing)


def weigh(rates: Rates, splits: Mapping[str, TokenizedSplit], reads: Reads, missing: Sequence[str]) -> tuple[bool, str]:
    computing = reads.tokens(splits) * rates.compute
    building = sum(int(splits[name].lengths.sum()) for name in missing) * (rates.compute + rates.write)
    reading = building + reads.tokens(splits) * rates.read
    per_token = f"a token takes {rates.compute * 1e6:.1f} us to compute, {rates.read * 1e6:.1f} us to read"
    of_runs = f", if the sweep has {reads.runs} trials" if reads.runs > 1 else ""
    return reading < computing, f"{per_token}; about {reading:.0f} s with it and {computing:.0f} s without{of_runs}"


def sampled_batches(lengths: np.ndarray, batching: Batching) -> list[np.ndarray]:
    """As training has them: of long rows and of short ones."""
    batches = ordered_batches(lengths, batching)
    places = {len(batches) * (2 * i + 1) // (2 * SAMPLED_BATCHES) for i in range(SAMPLED_BATCHES)}
    return [batches[place] for place in sorted(places)]


def measure_computing(
    part: "FrozenPart", split: TokenizedSplit, batches: Sequence[np.ndarray]
) -> tuple[float, list[Tensor]]:
    """Seconds a token, and the states of each batch."""
    part.of(split, batches[0])  # the first call sets up more than it computes
    seconds, states = timed(lambda: [part.of(split, rows) for rows in batches], part.device)
    return seconds / sum(int(split.lengths[rows].sum()) for rows in batches), states


def measure_store(wanted: "Wanted", batches: Sequence[np.ndarray], states: Sequence[Tensor]) -> tuple[float, float]:
    """Seconds a token to write them where the store is, and to read them as training will: rows that lie anywhere."""
    part, lengths_of, root = wanted.part, wanted.splits["train"].lengths, wanted.options.directory
    rows = np.concatenate(batches)
    positions = np.random.default_rng(0).permutation(len(rows))
    lengths = np.empty(len(rows), np.int64)
    lengths[positions] = lengths_of[rows]
    of_batches = np.split(positions, np.cumsum([len(batch) for batch in batches])[:-1])
    arrays = np.concatenate([[0], np.cumsum(lengths)]), np.zeros((len(rows), 2), np.uint64)
    manifest = part.manifest(lengths, wanted.options.dtype)
    with writing_in(root), TemporaryDirectory(prefix="probe-", dir=root) as directory:
        entry = Path(directory) / "entry"
        parts = zip(of_batches, states, strict=True)
        seconds, _ = timed(lambda: write_entry(entry, manifest, *arrays, parts), part.device)
        forget(entry / STATES)
        store = open_entry(entry)
        assert store is not None, "nobody else knows of it"
        return seconds / manifest.tokens, measure_reading(part, store, of_batches)


def measure_reading(part: "FrozenPart", store: ActivationStore, batches: Sequence[np.ndarray]) -> float:
    """Seconds a token, checked, padded and brought where it is trained on."""
    seconds, _ = timed(lambda: [store.padded(rows).to(part.device).float() for rows in batches], part.device)
    return seconds / sum(int(store.states.lengths[rows].sum()) for rows in batches)


def forget(path: Path) -> None:
    """Out of the system's cache where it lets us, as a store larger than memory will be."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds until a GPU has done it, too."""
    wait_for(device)
    start = time.perf_counter()
    made = work()
    wait_for(device)
    return time.perf_counter() - start, made


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
