"""Child processes that have all that the test has."""

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.process import BaseProcess


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
