"""The frozen part of the tiny model, and splits of 100, 10 and 10 tokens for it."""

import numpy as np
import torch

from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.tasks.base import tokenized_split
from permafrost.training.trunk_pass import FrozenPart

CHANNELS = 32
TOKENS = {"train": 100, "validation": 10, "test": 10}


def make_split(seed: int, lengths: list[int]) -> TokenizedSplit:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(2, 300, length).astype(np.int32) for length in lengths]
    return tokenized_split(ids, np.ones(len(ids)), None)


SPLITS = {
    "train": make_split(1, [9, 3, 20, 1, 40, 7, 12, 8]),
    "validation": make_split(2, [4, 6]),
    "test": make_split(3, [2, 8]),
}


def make_model(backbone, *, blocks: int = 1, embeddings: bool = True) -> GPT2WithHead:
    head = PooledHead(CHANNELS, 2, pooling="last", init="normal")
    return GPT2WithHead(backbone, head, Freezing(embeddings=embeddings, blocks=blocks))


def make_part(backbone, *, blocks: int = 1, precision: str = "32-true") -> FrozenPart:
    device = torch.device("cpu")
    return FrozenPart(make_model(backbone, blocks=blocks), name="tiny", precision=precision, device=device)
