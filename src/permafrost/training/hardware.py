"""What the machine can do: the precision and the number of threads, chosen and stated."""

import ctypes
import os
import re
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from permafrost.model.flat_rows import onednn_has_bfloat16

PROBE_ROWS, PROBE_CHANNELS = 512, 768
# Autocast pays for its casts out of it. CPUs that were measured are at a half, or at four and more.
WORTHWHILE_SPEEDUP = 2.0
GPU_WORKERS = 2
KEPT_KERNELS = 256  # of 1,024 by oneDNN's own choice: memory that a run that writes has no use for (speed.md)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resolve_precision(precision: str, accelerator: str) -> str:
    """`auto` is bf16 autocast where the hardware multiplies bf16 faster, else float32.

    A CPU is measured, as its instructions do not tell: AVX512-BF16 alone is half as fast as float32 on one make and
    four times as fast on another (benchmarks/results/precision_*.md).
    """
    if precision != "auto":
        return precision
    return "bf16-mixed" if _bf16_pays(accelerator) else "32-true"


def is_emulated(precision: str, accelerator: str) -> bool:
    """Whether products of that precision are made of slower ones."""
    is_bfloat16 = precision.startswith("bf16")
    return is_bfloat16 and resolve_device(accelerator).type == "cpu" and not onednn_has_bfloat16()


def autocast(precision: str, device_type: str) -> torch.autocast:
    """What Lightning's precision plugin of that name puts around a step."""
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device_type, dtype=dtype, enabled=precision.endswith("-mixed"))


def resolve_device(accelerator: str) -> torch.device:
    """Where one process computes what comes before the trainer."""
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        return torch.device("cuda", number % torch.cuda.device_count())
    return torch.device("cpu")


def use_all_cores() -> None:
    """One thread per core this process may run on, or OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_workers(asked: int | str, accelerator: str) -> int:
    """Processes that collate. `auto` is none where a CPU trains, as each would take a core from the products, and else
    one or two for each GPU, as far as there are cores: reading a batch takes about a millisecond, in which a GPU would
    wait (benchmarks/results/row_reads.md); not measured on one."""
    if asked != "auto":
        return int(asked)
    if resolve_device(accelerator).type == "cpu":
        return 0
    return max(0, min(GPU_WORKERS, usable_cores() // max(1, torch.cuda.device_count()) - 1))


def keep_freed_buffers() -> None:
    """Where the C library is glibc, it keeps what is freed: it would give large buffers back to the system at once, and
    each would come anew page by page (benchmarks/results/speed.md)."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # bytes


def keep_few_kernels() -> None:
    """oneDNN keeps what it compiles for each shape of a product, megabytes each; it asks for the limit at its first."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KEPT_KERNELS))


def reset_peak_memory() -> None:
    """Count from here: a process may train several trials, one after the other."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone, and not where /proc may not be written
        CLEAR_REFS.write_text("5")  # `man 5 proc`: VmHWM starts again from what is resident now


def peak_memory_mb() -> float:
    """Largest memory of this process since the reset, MiB: the GPU's where one was used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        return int(re.findall(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _bf16_pays(accelerator: str) -> bool:
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return onednn_has_bfloat16() and _bf16_speedup_of_products() > WORTHWHILE_SPEEDUP


@cache
def _bf16_speedup_of_products() -> float:
    """How many times faster this CPU multiplies bfloat16 than float32: some 40 ms, once a process.

    By one thread's own time, which other processes cannot lengthen: else what is chosen would depend on them.
    """
    threads, float32 = torch.get_num_threads(), torch.ones(PROBE_ROWS, PROBE_CHANNELS)
    torch.set_num_threads(1)
    seconds = [_fastest_product_seconds(float32.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    torch.set_num_threads(threads)
    return seconds[0] / seconds[1]


def _fastest_product_seconds(matrix: torch.Tensor, repeats: int = 5) -> float:
    square = torch.ones(matrix.shape[1], matrix.shape[1], dtype=matrix.dtype)
    seconds = []
    for _ in range(repeats):
        begun = time.thread_time()
        matrix @ square
        seconds.append(time.thread_time() - begun)
    return min(seconds)
