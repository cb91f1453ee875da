"""When memory runs out: which batch it was, what to set, and a trial of the longest batch before training."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from permafrost.errors import PermafrostError, ResourceError
from permafrost.training.datamodule import DataModule
from permafrost.training.hardware import autocast

MOST_PARTS = 64
SIGNS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


@contextmanager
def told_what_to_set(module: Any, max_tokens_per_batch: int, *, tries_first: bool) -> Iterator[None]:
    """Turn running out of memory into an error that names the batch, its tokens and the setting to change.

    Raises:
        ResourceError
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            told = str(error).splitlines()[0].rstrip(".")
            raise ResourceError(f"{told}; memory may have run out: set a smaller data.num_workers") from error
        if isinstance(error, PermafrostError) and str(error).startswith("Caught "):  # in a loader's worker
            raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].rstrip()) from error
        if not is_out_of_memory(error):
            raise
        raise ResourceError(advice(module.batch_shape, max_tokens_per_batch, tries_first=tries_first)) from error


def advice(shape: tuple[int, ...], max_tokens_per_batch: int, *, tries_first: bool) -> str:
    rows, tokens = shape
    told = f"memory ran out at a batch of {rows:,} rows x {tokens:,} tokens = {rows * tokens:,} tokens"
    half = max(2, max_tokens_per_batch // 2)
    halved = f"set data.max_tokens_per_batch={half} and twice the trainer.accumulate_grad_batches"
    return f"{told}; {halved}" if tries_first else f"{told}; let data.auto_batch=true find what fits, or {halved}"


def fit_in_memory_(module: Any, data: DataModule, precision: str, device: torch.device, *, values: int = 2) -> int:
    """Cut every batch into as few parts as the longest one fits in, and accumulate over them; returns the parts.

    The rows of a step stay together, so that training is what it would be with more memory. `values` are kept beside
    each weight that is trained: the optimizer's, and an average's.

    Raises:
        ResourceError: not a single row fits.
    """
    module.to(device)
    for parts in _doubling():
        data.parts_per_batch = parts
        if _longest_fits(module, data, precision, device, values):
            return parts
        if len(data.longest_batch().rows) == 1:
            break
    raise ResourceError(
        f"one row of {module.batch_shape[1]:,} tokens is more than memory holds; set a smaller data.max_length, "
        "or freeze more blocks (freezing.blocks=N)"
    )


def _doubling() -> Iterator[int]:
    parts = 1
    while parts <= MOST_PARTS:
        yield parts
        parts *= 2


def _longest_fits(module: Any, data: DataModule, precision: str, device: torch.device, values: int) -> bool:
    """One pass forward and back beside what will be kept."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), autocast(precision, device.type):
            kept = [torch.empty_like(parameter) for parameter in trained for _ in range(values)]
            batch = data.batches("train")[data.longest_batch()]
            loss = module.loss_of(data.transfer_batch_to_device(batch, device, 0))
            loss.backward()
            del kept, loss
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        for parameter in trained:
            parameter.grad = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
