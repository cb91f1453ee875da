"""Child processes: such as have all that the test has, and one that has a directory for itself."""

import multiprocessing
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from permafrost.storage.locks import sole_run
with sole_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def holding(directory: Path) -> Iterator[subprocess.Popen]:
    """A process that has the directory for itself."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def begun(target: Callable[[], object]) -> BaseProcess:
    child = multiprocessing.get_context("fork").Process(target=target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12; there is one here
        child.start()
    return child


def forked(*targets: Callable[[], object]) -> list[int | None]:
    """Run each at once in a child process of its own; returns their exit codes."""
    children = [begun(target) for target in targets]
    for child in children:
        child.join(30)
    return [child.exitcode for child in children]
