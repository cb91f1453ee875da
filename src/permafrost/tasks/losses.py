"""Losses, one value per target: the caller weighs and averages them.

N targets, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossEntropy(nn.Module):
    """Negative log-likelihood of the label, 0 for the label -100.

    `label_smoothing` spreads that share over all classes, in training only: validation shows the plain loss.

    `class_weights`: one factor per class, in the labels' order.
    """

    weight: Tensor | None

    def __init__(self, *, label_smoothing: float = 0.0, class_weights: list[float] | None = None):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", _as_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)"""
        smoothing = self.label_smoothing if self.training else 0.0
        return functional.cross_entropy(
            logits.float(), labels, weight=self.weight, label_smoothing=smoothing, reduction="none"
        )


class Focal(nn.Module):
    """`(1 - p)^gamma` times the cross-entropy (Lin et al. 2017, eq. 4): well-classified rows weigh less."""

    weight: Tensor | None

    def __init__(self, *, gamma: float = 2.0, class_weights: list[float] | None = None):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", _as_weights(class_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, K), (N,) -> (N,)"""
        nll = functional.cross_entropy(logits.float(), labels, reduction="none")
        weight = 1.0 if self.weight is None else self.weight[labels.clamp(min=0)]  # -100 has no loss to weigh
        # the floor keeps the gradient finite where a row is certain and gamma below 1
        return weight * (-torch.expm1(-nll)).clamp(min=1e-12) ** self.gamma * nll


class BinaryCrossEntropy(nn.Module):
    """Of each label by itself, the mean over a row's labels; `label_weights` one factor for each, in their order."""

    weight: Tensor | None

    def __init__(self, *, label_weights: list[float] | None = None):
        super().__init__()
        self.register_buffer("weight", _as_weights(label_weights), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, K) twice -> (N,)"""
        losses = functional.binary_cross_entropy_with_logits(
            logits.float(), labels, pos_weight=self.weight, reduction="none"
        )
        return losses.mean(-1)


class MeanSquared(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N, 1), (N,) -> (N,)"""
        return (outputs.float().squeeze(-1) - targets) ** 2


class Huber(nn.Module):
    """Squared below `delta`, linear above it (Huber 1964); `delta` in units of the scaled target."""

    def __init__(self, *, delta: float = 1.0):
        super().__init__()
        self.delta = delta

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(N, 1), (N,) -> (N,)"""
        return functional.huber_loss(outputs.float().squeeze(-1), targets, delta=self.delta, reduction="none")


def _as_weights(class_weights: list[float] | None) -> Tensor | None:
    return None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
