"""A sweep's trials: run once however often the sweep is started, and told apart where several run side by side."""

import io
import multiprocessing
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig

from permafrost.errors import ConfigError
from permafrost.runs.record import changes_of, finished_result
from permafrost.storage.locks import HOLDER, LOCK

# Keys that say how a sweep is started, not what a trial is.
OF_THE_START = ("resume", "resume_allow_changes", "save_every", "debug")


def earlier_result(cfg: DictConfig, run_dir: Path, sweep_dir: Path) -> dict[str, Any] | None:
    """The result of this very trial where an earlier start of the sweep finished it.

    What a trial left that broke off or failed is cleared, so that it begins again, unless `resume` goes on from it: who
    asks must have the directory for itself (locks.sole_run).

    Raises:
        ConfigError: the directory holds a trial of another configuration.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        return None
    for key, (before, now) in changes_of(path, cfg).items():
        if key not in OF_THE_START:
            raise ConfigError(
                f"{run_dir} holds another trial: {key} is {before} there and {now} here; set another hydra.sweep.dir"
            )
    is_known = path.stat().st_size > 0  # empty where the machine went down as it was written
    if is_known and (result := finished_result(run_dir)):
        return result
    if cfg.resume == "never" and sweep_dir.resolve() in run_dir.resolve().parents:
        clear(run_dir)
    return None


def clear(run_dir: Path) -> None:
    """Remove all but what says that the directory is this process's."""
    for path in run_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (LOCK, HOLDER):
            path.unlink()


def worker_number() -> int | None:
    """Which of the sweep's workers this process is, from 0; None in the program itself."""
    return number_of(multiprocessing.current_process().name)


def number_of(process_name: str) -> int | None:
    """joblib's workers are LokyProcess-1, LokyProcess-2 and so on; one that took another's place counts on."""
    found = re.fullmatch(r"LokyProcess-(\d+)", process_name)
    return int(found[1]) - 1 if found else None


def narrow_devices(worker: int, accelerator: str) -> None:
    """Show this process one GPU alone, as a trial can use one; it keeps it for its later trials."""
    if accelerator == "cpu":
        return
    devices = visible_devices()
    if len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = device_of(worker, devices)  # read when CUDA starts, at its first use


def visible_devices() -> list[str]:
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [device for device in given.split(",") if device]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]  # asks the driver, and does not start CUDA


def device_of(worker: int, devices: Sequence[str]) -> str:
    """Workers take turns where there are more of them than devices."""
    return devices[worker % len(devices)]


def settle_worker(mark: str) -> None:
    """Make a process of joblib's one to train in, whose printed lines begin with the mark of their trial."""
    if not isinstance(sys.stdout, MarkedLines):  # its first trial
        multiprocessing.set_start_method(None, force=True)  # joblib's own would pickle what a data loader's workers get
        end_with_parent()
        sys.stdout, sys.stderr = MarkedLines(sys.stdout), MarkedLines(sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, MarkedLines):
            stream.mark = mark


def end_with_parent() -> None:
    """End this process when the one that started it was killed: else it would train on, and a new start beside it."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class MarkedLines(io.TextIOBase):
    """Writes whole lines, each behind a mark; no terminal, so that no progress bar is drawn over another's."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.mark, self.begun = stream, "", ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        self.stream.write("".join(f"{self.mark}{line}\n" for line in lines))
        self.stream.flush()
        return len(text)
