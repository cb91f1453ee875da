"""When a training step went wrong: gradients that are no numbers, losses far beyond the others, runs that diverge."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FEWEST = 20  # losses before one can be called far from the others, or the run astray
DIVERGED = 100.0  # times the loss before the first step


def robust_z(value: float, others: Sequence[float]) -> float:
    """How many standard deviations above the median, both told in a way that a few outliers do not change.

    Of a normal distribution the median absolute deviation times 1.4826 is the standard deviation (Iglewicz and
    Hoaglin 1993, How to detect and handle outliers, section 3.2). Losses that hardly differ count as 1 % apart.
    """
    values = torch.tensor(list(others), dtype=torch.float64)
    median = values.median()
    deviation = 1.4826 * (values - median).abs().median()
    return float((value - median) / torch.maximum(deviation, 0.01 * median.abs()).clamp(min=1e-12))


def is_spike(loss: float, others: Sequence[float], limit: float) -> bool:
    return len(others) >= FEWEST and robust_z(loss, others) > limit


def has_diverged(first: float, latest: Sequence[float]) -> bool:
    """Whether the median loss of the latest steps is far beyond that of the model as it came."""
    return len(latest) >= FEWEST and float(torch.tensor(list(latest)).median()) > DIVERGED * max(first, 0.1)


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """() the L2 norm over all that is trained, other processes' shares included."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if is_share(norm) else norm


def is_share(value: Tensor) -> bool:
    """Whether it is a process's share of a tensor: trainer=fsdp."""
    return hasattr(value, "full_tensor")


def leave_out_step_(optimizer: Optimizer) -> None:
    """Without gradients an optimizer changes neither weights nor moments."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def leave_out_step_where_(is_bad: Tensor, optimizer: Optimizer) -> None:
    """Likewise, decided on the GPU, which then does not have to be waited for: torch's fused kernels change nothing
    where `found_inf` is 1, as they are told of by a gradient scaler."""
    optimizer.found_inf = is_bad.to(torch.float32)  # type: ignore[attr-defined]


def decides_on_device(optimizer: Optimizer) -> bool:
    groups = optimizer.param_groups
    return all(group.get("fused") and not any(map(is_share, group["params"])) for group in groups)
