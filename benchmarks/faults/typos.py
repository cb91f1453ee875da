"""Every key mistyped."""

import multiprocessing
import os
import random
from pathlib import Path


def typos(root: Path) -> list[str]:
    """Slips of one letter in every key of every option, as the program answers them."""
    from tests.settings.test_suggestions import slipped_commands

    typed = list(slipped_commands(random.Random(0)))
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        right = pool.map(is_suggested, typed, chunksize=20)
    wrong = [arguments[-1] for (arguments, _), is_right in zip(typed, right, strict=True) if not is_right]
    return [
        f"A letter of a key left out, doubled, put in, exchanged, or changed places with the next: {len(typed):,} "
        f"commands for all keys of all options, each as `python train.py` answers it. {sum(right) / len(typed):.1%} "
        "get the right key suggested, in one line and with exit code 2.",
        *(["", f"Not: {', '.join(f'`{argument}`' for argument in wrong)}."] if wrong else []),
    ]


def is_suggested(typed: tuple[list[str], str]) -> bool:
    from tests.runs.conftest import command_here

    arguments, expected = typed
    return command_here(*arguments) == (2, "", expected)
