"""Classes of unequal size, and rows of unequal worth: factors for the loss, or how often a row stands in an epoch."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from permafrost.data.rows import ORIGIN, Table
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.errors import ConfigError
from permafrost.storage.ragged import RaggedArray

Balance = Literal["none", "weights", "sampling"]


def class_weights(split: TokenizedSplit, num_classes: int) -> np.ndarray:
    """(K,) one factor a class, such that all weigh alike in the sum and a target weighs 1 on average: n / (K n_k).

    Of rows with several labels each, how many rows lack a label for each that has it, as BCEWithLogitsLoss takes it.
    """
    labels = split.labels
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        present = labels.sum(0)
        return (len(labels) - present) / np.maximum(present, 1)
    if isinstance(labels, RaggedArray):
        labels = np.concatenate([labels[row] for row in range(len(labels))])
        labels = labels[labels >= 0]
    if labels is None or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError("data.balance is for tasks with labels; set data.balance=none")
    counts = np.bincount(labels, minlength=num_classes)
    return len(labels) / (num_classes * np.maximum(counts, 1))


def row_weights(split: TokenizedSplit, balance: Balance, quality: np.ndarray | None) -> np.ndarray | None:
    """(rows,) how often each row of train stands in an epoch, on average; None where all stand in it once.

    `quality` is each source row's.

    Raises:
        ConfigError: sampling of rows that have not one label each, or weights of rows that have no place of their own.
    """
    weights = np.ones(len(split))
    if quality is not None and (quality != 1).any():
        if split.source_rows is None and len(quality) != len(split):
            raise ConfigError("texts that are joined end to end have no weights of their own; give each file weight 1")
        weights *= quality if split.source_rows is None else quality[split.source_rows]
    if balance == "sampling":
        labels = split.labels
        if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ConfigError("data.balance=sampling is for rows with one label each; data.balance=weights is not")
        weights *= class_weights(split, int(labels.max()) + 1)[labels]
    return None if (weights == 1).all() else weights


def weights_by_origin(train: Table, weights: Mapping[str, float]) -> np.ndarray:
    """(rows,) the weight of what each row is from."""
    return np.array([weights[name] for name in train[ORIGIN].to_pylist()])


def drawn_rows(weights: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Row positions of one epoch: each row as often as its weight says, a fraction by chance; one row at least."""
    chance = np.random.default_rng([seed, epoch, 1]).random(len(weights))
    times = np.floor(weights).astype(int) + (chance < weights % 1)
    return np.repeat(np.arange(len(weights)), times) if times.any() else np.array([int(weights.argmax())])
