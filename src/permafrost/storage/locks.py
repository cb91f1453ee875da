"""A run's directory, and a sweep's, is one process's at a time."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from permafrost.errors import ConfigError, ResourceError

LOCK, HOLDER = ".lock", ".running.json"


@contextmanager
def sole_run(directory: Path, key: str = "hydra.run.dir") -> Iterator[None]:
    """Keep the directory, which `key` names, for this process. The system frees it when the process ends, however it
    ends.

    Raises:
        ConfigError: another process has it.
        ResourceError: nothing can be written there.
    """
    from filelock import FileLock, Timeout

    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"{directory} is another run's, which is at work: {holder(directory)}; wait for it, or set another {key}"
        ) from None
    except OSError as error:
        raise ResourceError(f"cannot write to the run directory {directory}: {error.strerror}") from error
    try:
        told = {"process": os.getpid(), "host": socket.gethostname()}
        (directory / HOLDER).write_text(json.dumps(told) + "\n", "utf-8")
        yield
    finally:
        for name in (HOLDER, LOCK):
            (directory / name).unlink(missing_ok=True)
        lock.release()


def holder(directory: Path) -> str:
    try:
        told = json.loads((directory / HOLDER).read_text("utf-8"))
        return f"process {told['process']} on {told['host']}"
    except (OSError, ValueError):
        return "a process that has only just begun"
