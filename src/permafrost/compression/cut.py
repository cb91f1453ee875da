"""Blocks, neurons and heads that do least are taken out: what is left is smaller, and computes less.

Plain Transformers loads it, but not with fewer heads: GPT2Config has no word for them (model/surgery.py).
"""

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor

from permafrost.compression.calibration import Worth, seen_by_blocks
from permafrost.compression.distillation import evenly_spaced
from permafrost.data.tokens.batching import Batch
from permafrost.errors import ConfigError
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.surgery import keep_blocks_, keep_heads_, keep_neurons_


def drop_blocks_(
    model: GPT2WithHead, batches: Iterable[Batch], *, share: float, choose: Literal["influence", "evenly"]
) -> list[int]:
    """Gives the positions of those kept: all but the `share` that change the states of `batches` least, or evenly
    spaced ones.

    Raises:
        ConfigError: all of them would be kept, or none.
    """
    blocks = len(model.transformer.h)
    count = blocks - round(share * blocks)
    if not 1 <= count < blocks:
        raise ConfigError(
            f"compression.drop.share={share}: of {blocks} blocks {count} would be left; give a share from "
            f"{1 / blocks:.2f} to {(blocks - 1) / blocks:.2f}"
        )
    kept = evenly_spaced(blocks, count) if choose == "evenly" else most_influential(model, batches, count)
    keep_blocks_(model.transformer, kept)
    return kept


def most_influential(model: GPT2WithHead, batches: Iterable[Batch], count: int) -> list[int]:
    """Positions of `count` blocks, rising."""
    influence = [seen.influence for seen in seen_by_blocks(model, batches)]
    return sorted(sorted(range(len(influence)), key=influence.__getitem__)[-count:])


def narrow_(model: GPT2WithHead, worth: Sequence[Worth], *, mlp: float | None, heads: float | None) -> dict[str, int]:
    """Without the `mlp` share of every block's neurons and the `heads` share of its heads, those worth least; gives how
    many of each a block keeps. All blocks keep as many, as GPT2Config has one number for all.

    Raises:
        ConfigError: a share is asked of which all would be left.
    """
    kept = dict[str, int]()
    if mlp:
        keep_neurons_(model.transformer, neurons := [most_worth(block.neurons, mlp) for block in worth])
        kept["neurons kept"] = fewer("mlp", mlp, len(worth[0].neurons), len(neurons[0]))
    if heads:
        keep_heads_(model.transformer, of_blocks := [most_worth(block.heads, heads) for block in worth])
        kept["heads kept"] = fewer("heads", heads, len(worth[0].heads), len(of_blocks[0]))
    return kept


def fewer(what: str, share: float, before: int, after: int) -> int:
    if after == before:
        raise ConfigError(f"compression.narrow.{what}={share}: of {before} all would be left; give a larger share")
    return after


def most_worth(scores: Tensor, dropped: float) -> Tensor:
    """Positions of all but the `dropped` share, rising; one at least."""
    count = max(1, len(scores) - round(dropped * len(scores)))
    return scores.argsort(descending=True)[:count].sort().values
