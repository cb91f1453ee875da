"""Commands, run and timed: how long each took, and when each of its lines came."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Stamped = tuple[float, list[tuple[float, str]]]


def run_side_by_side(commands: Sequence[str], log: Path) -> list[Stamped]:
    """All at once, each with its share of the cores, as a sweep's workers have it."""
    shares = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(commands)))} if len(commands) > 1 else {}
    with ThreadPoolExecutor(len(commands)) as pool:
        logs = [log.with_suffix(f".{number}.log") for number in range(len(commands))]
        return list(pool.map(lambda command, path: run_stamped(command, path, shares), commands, logs))


def run_stamped(command: str, log: Path, variables: Mapping[str, str] | None = None) -> Stamped:
    """Run it; seconds of the whole process, and its lines, each with the second at which it came."""
    log.parent.mkdir(parents=True, exist_ok=True)
    arguments = [sys.executable, *shlex.split(command)[1:]]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})}  # else lines wait in the pipe
    start, lines = time.perf_counter(), []
    with (
        log.open("w") as copy,
        subprocess.Popen(
            arguments, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - start, line.rstrip()))
            copy.write(line)
    if process.returncode:
        raise SystemExit(f"{command}\nended with {process.returncode}; see {log}")
    return time.perf_counter() - start, lines
