"""35: a slip of one letter in any key gets that key suggested."""

import random
import string

from omegaconf import DictConfig, OmegaConf

from permafrost.errors import nearest
from tests.runs.conftest import compose_config


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
