"""From hidden states to logits: pooled heads for one answer a row, the tied head for language modelling.

B rows, T tokens, C channels, K outputs, V vocabulary.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from permafrost.model.long_rows import last_positions, window_counts
from permafrost.model.packing import real_tokens

Pooling = Literal["last", "mean", "attention", "windows", "pair"]
Initialization = Literal["normal", "xavier", "he"]
COSINE_SCALE = 3.0  # of the score of an untrained head for pairs


def pool_mean(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C) -> (B, C): the mean over the real tokens."""
    real = real_tokens(lengths, hidden.shape[1]).to(hidden.dtype)
    return torch.einsum("btc,bt->bc", hidden, real) / lengths[:, None].to(hidden.dtype)


class AttentionPooling(nn.Module):
    """(B, T, C) -> (B, C): a learned weighting of the real tokens, or windows (Yang et al. 2016, section 2.2)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.query = nn.Linear(hidden_size, 1, bias=False)
        nn.init.zeros_(self.query.weight)  # begins as the mean

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        scores = self.query(hidden).squeeze(-1)  # (B, T)
        real = real_tokens(lengths, hidden.shape[1])
        weights = scores.float().masked_fill(~real, float("-inf")).softmax(-1)
        return torch.einsum("btc,bt->bc", hidden, weights.to(hidden.dtype))


class Comparison(nn.Module):
    """(2 B, S, C), (2 B,) the two texts of rows -> (B, C), of which the sum is the cosine of each two (Reimers and
    Gurevych 2019, section 3).

    Which tokens matter is learned, as rare ones do more than frequent ones (Arora et al. 2017, section 3), and so is
    the direction that all texts share, without which their cosines differ little (Mu and Viswanath 2018, section 2).
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.attention = AttentionPooling(hidden_size)
        self.centre = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        texts = (self.attention(hidden, lengths) - self.centre).float()
        one, two = functional.normalize(texts, dim=-1).unflatten(0, (-1, 2)).unbind(1)
        return one * two


class PooledHead(nn.Module):
    """(B, T, C) hidden states -> (B, K) outputs. `score` has no bias, as in GPT2ForSequenceClassification.

    `last` and `windows` take the states at the positions that they read alone: (B, 1, C), and one for each window of
    `window` tokens, (B, W, C), which are weighed as `attention` weighs tokens. `pair` takes the two texts of a row one
    after the other, (2 B, S, C), and weighs the channels of their cosine. Its score has a bias, as cosines are not 0 on
    average; one output begins as so many times the cosine's distance from 1.
    """

    def __init__(
        self, hidden_size: int, num_outputs: int, *, pooling: Pooling, init: Initialization, window: int | None = None
    ):
        super().__init__()
        if pooling == "windows" and window is None:
            raise ValueError("who pools windows must know their size: give window=TOKENS")
        self.pooling, self.window = pooling, window or 0
        if pooling in ("attention", "windows"):
            self.attention = AttentionPooling(hidden_size)
        if pooling == "pair":
            self.comparison = Comparison(hidden_size)
        self.score = nn.Linear(hidden_size, num_outputs, bias=pooling == "pair")
        if pooling == "pair" and num_outputs == 1:
            nn.init.constant_(self.score.weight, COSINE_SCALE)
            nn.init.constant_(self.score.bias, -COSINE_SCALE)
        else:
            initialize_(self.score.weight, init)

    def reads(self, lengths: Tensor) -> Tensor | None:
        """(B, 1) or (B, W): the last real token of each row, or of each window, which has seen all of it; None where
        all are pooled."""
        if self.pooling == "windows":
            return last_positions(lengths, self.window)
        return lengths[:, None] - 1 if self.pooling == "last" else None

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return self.score(self.pool(hidden, lengths).to(self.score.weight.dtype))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        if self.pooling == "last":
            return hidden[:, 0]
        if self.pooling == "mean":
            return pool_mean(hidden, lengths)
        if self.pooling == "pair":
            return self.comparison(hidden, lengths)
        if self.pooling == "windows":
            return self.attention(hidden, window_counts(lengths, self.window))
        return self.attention(hidden, lengths)


class TokenHead(nn.Module):
    """(B, T, C) hidden states -> (B, T, K), as GPT2ForTokenClassification's `classifier`."""

    def __init__(self, hidden_size: int, num_outputs: int, *, init: Initialization):
        super().__init__()
        self.classifier = nn.Linear(hidden_size, num_outputs)
        initialize_(self.classifier.weight, init)
        nn.init.zeros_(self.classifier.bias)

    def reads(self, lengths: Tensor) -> None:
        """All positions, unless the task says which."""

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.classifier(hidden)


class TiedHead(nn.Module):
    """(B, T, C) hidden states -> (B, T, V) logits by the token embedding itself: no weights of its own."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.tied = (embedding,)  # in a tuple, so that the weight is registered once, in the backbone

    def reads(self, lengths: Tensor) -> None:
        """All positions."""

    def forward(self, hidden: Tensor, lengths: Tensor | None = None) -> Tensor:
        return nn.functional.linear(hidden, self.tied[0].weight)


def initialize_(weight: Tensor, init: Initialization) -> None:
    """normal: GPT-2's N(0, 0.02); xavier: Glorot and Bengio 2010, eq. 16; he: He et al. 2015, eq. 10."""
    if init == "normal":
        nn.init.normal_(weight, std=0.02)
    elif init == "xavier":
        nn.init.xavier_uniform_(weight)
    else:
        nn.init.kaiming_normal_(weight, nonlinearity="linear")
