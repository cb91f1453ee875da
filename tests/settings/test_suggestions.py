"""35: a slip of one letter in any key gets that key suggested, by the function and by the program."""

import random
import string
from collections.abc import Iterator

import pytest
from omegaconf import DictConfig, OmegaConf

from permafrost.errors import nearest
from tests.runs.conftest import command, command_here, compose_config
from tests.runs.test_groups import OPTIONS


def levels(node: DictConfig, path: str = "") -> dict[str, list[str]]:
    """Dotted path -> the keys that stand there."""
    found = {path: [str(key) for key in node]}
    for key, child in node.items():
        if isinstance(child, DictConfig):
            found |= levels(child, f"{path}.{key}" if path else str(key))
    return found


def slips(word: str, rng: random.Random) -> set[str]:
    """A letter left out, doubled, put in, exchanged, or changed places with the next."""
    place = rng.randrange(len(word))
    letter = rng.choice(string.ascii_lowercase)
    head, rest = word[:place], word[place:]
    swapped = head + rest[1:2] + rest[:1] + rest[2:]
    return {head + rest[1:], head + rest[:1] + rest, head + letter + rest, head + letter + rest[1:], swapped} - {
        word,
        "",
    }


def test_35_every_key_is_suggested_for_a_slip():
    rng, right, wrong = random.Random(0), 0, []
    cfg = compose_config("optimizer=muon", "compression=pipeline")
    OmegaConf.set_struct(cfg, False)
    by_path = levels(cfg)
    for path, keys in by_path.items():
        for key in keys:
            for slip in slips(key, rng) - set(keys):
                if nearest(slip, keys) == f"; did you mean {key!r}?":
                    right += 1
                else:
                    wrong.append((path, key, slip))
    assert right + len(wrong) > 700
    assert right / (right + len(wrong)) >= 0.95, wrong


def slipped_commands(rng: random.Random) -> Iterator[tuple[list[str], str]]:
    """For every key that any option of any group has, what is typed with a slip in it, and what is to be answered."""
    known: set[tuple[str, str]] = set()
    for chosen in [[], *([f"{group}={option}"] for group, option in OPTIONS)]:
        cfg = compose_config(*chosen)
        OmegaConf.set_struct(cfg, False)
        for path, keys in levels(cfg).items():
            for key in keys:
                if (path, key) not in known:
                    known.add((path, key))
                    for slip in sorted(slips(key, rng) - set(keys)):
                        typed = f"{path}.{slip}".strip(".")
                        yield [*chosen, f"{typed}=1"], f"error: unknown key {typed}; did you mean {key!r}?\n"


@pytest.mark.slow
def test_35_the_program_suggests_every_key_for_a_slip(tmp_path):
    """A tenth of the slips; `python benchmarks/reliability.py typos` makes all of them."""
    rng = random.Random(0)
    commands = list(slipped_commands(rng))
    drawn = rng.sample(commands, len(commands) // 10)
    wrong = [arguments for arguments, expected in drawn if command_here(*arguments) != (2, "", expected)]
    assert len(drawn) > 100
    assert len(wrong) / len(drawn) <= 0.05, wrong
    for arguments, _ in drawn[:5]:
        done = command(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == command_here(*arguments)
