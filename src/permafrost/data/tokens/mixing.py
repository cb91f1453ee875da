"""Batches of several tasks in one epoch, each batch of one task: how many of each, and in which order."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice

import numpy as np

from permafrost.data.tokens.batching import Batching, shuffled_batches


def mixed_batches(
    lengths: Mapping[str, np.ndarray],
    batching: Batching,
    *,
    temperature: float,
    seed: int,
    epoch: int,
    weights: Mapping[str, np.ndarray] | None = None,
) -> list[tuple[str, np.ndarray]]:
    """(part, row positions) of each batch of one epoch. One part alone has each of its rows once, or as often as its
    weight says.

    Of several the epoch has as many batches as one pass over each would, shared out by temperature. Over the epochs
    every part goes on through its own passes, so that a row is not repeated before all others of its part were seen.
    """
    drawn = weights or {}
    if len(lengths) == 1:
        ((part, alone),) = lengths.items()
        of_epoch = shuffled_batches(alone, batching, seed=seed, epoch=epoch, weights=drawn.get(part))
        return [(part, rows) for rows in of_epoch]
    sizes = [
        len(shuffled_batches(of_part, batching, seed=seed, epoch=0, weights=drawn.get(part)))
        for part, of_part in lengths.items()
    ]
    shares = batches_per_epoch(sizes, temperature)
    batches: list[tuple[str, np.ndarray]] = []
    for (part, of_part), number in zip(lengths.items(), shares, strict=True):
        unending = _passes(of_part, batching, seed, drawn.get(part))
        batches += [(part, rows) for rows in islice(unending, epoch * number, (epoch + 1) * number)]
    order = np.random.default_rng([seed, epoch, len(lengths)]).permutation(len(batches))
    return [batches[i] for i in order]


def batches_per_epoch(sizes: Sequence[int], temperature: float) -> list[int]:
    """Of parts with so many batches: in proportion to `size ** (1 / temperature)`, one at least.

    1 takes each as large as it is, and larger temperatures even them out (Raffel et al. 2020, section 3.5.2).
    """
    weights = np.array(sizes, np.float64) ** (1 / temperature)
    return [max(1, round(share)) for share in weights / weights.sum() * sum(sizes)]


def _passes(lengths: np.ndarray, batching: Batching, seed: int, weights: np.ndarray | None) -> Iterator[np.ndarray]:
    for number in count():
        yield from shuffled_batches(lengths, batching, seed=seed, epoch=number, weights=weights)
