"""What a model costs, and how sure its score is: measured in one way for all, so that versions can be compared."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from permafrost.storage.checksums import weight_files

RESAMPLES = 200
STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Latency:
    """Milliseconds: the median, and what 95 of 100 calls stay below."""

    p50_ms: float
    p95_ms: float


def latency(call: Callable[[], Any], *, repeats: int = 30, warm_up: int = 3) -> Latency:
    for _ in range(warm_up):
        call()
    times = [_milliseconds(call) for _ in range(repeats)]
    return Latency(p50_ms=statistics.median(times), p95_ms=float(np.quantile(times, 0.95)))


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def size_mb(directory: Path) -> float:
    """Of the weights, in 10^6 bytes."""
    return sum(path.stat().st_size for path in weight_files(directory)) / 1e6


def resident_mb() -> float:
    """Of this process, in 10^6 bytes: now, or where only Linux tells that, at its peak."""
    if not STATM.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def bootstrap(
    score: Callable[[np.ndarray], float], units: int, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The 95 % interval of a score over rows drawn again with replacement (Efron 1979); `score` is given their
    positions, (units,)."""
    generator = np.random.default_rng(seed)
    found = [score(generator.integers(units, size=units)) for _ in range(resamples)]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def frontier(costs: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Which versions no other beats: none is at most as costly and at least as good, and better in one of both."""
    pairs = list(zip(costs, qualities, strict=True))
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in pairs) for cost, quality in pairs
    ]
