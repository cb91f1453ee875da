"""Learning-rate schedules: pure factors of the step, and the torch schedulers that apply them.

A factor multiplies the optimizer's `lr`. `warmup` is a count of optimizer steps (int) or a share of all steps (float).
Each schedule rises linearly over the warm-up, then follows its own curve over `progress`, 0 at the warm-up's end and 1
at the last step's end.
"""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau

Curve = Callable[[float], float]


def warmup_steps(warmup: int | float, total_steps: int) -> int:
    """Steps of the warm-up: 0.1 is a tenth of all steps, 10 is ten steps.

    Raises:
        ValueError: it is negative, a share above 1, or longer than the run.
    """
    steps = round(warmup * total_steps) if isinstance(warmup, float) else warmup
    if not 0 <= steps <= total_steps:
        raise ValueError(f"scheduler.warmup={warmup} is {steps} steps, but the run has {total_steps}")
    return steps


def factor(step: int, total_steps: int, num_warmup_steps: int, curve: Curve) -> float:
    """The learning rate of `step` (0 is the first) as a share of the optimizer's `lr`."""
    if step < num_warmup_steps:
        return (step + 1) / (num_warmup_steps + 1)
    return curve(min(1.0, (step - num_warmup_steps) / max(1, total_steps - num_warmup_steps)))


def constant(optimizer: Optimizer, total_steps: int, *, warmup: int | float) -> LRScheduler:
    return _per_step(optimizer, total_steps, warmup, lambda progress: 1.0)


def linear(optimizer: Optimizer, total_steps: int, *, warmup: int | float, final: float) -> LRScheduler:
    """Falls in a straight line to `final` times the learning rate."""
    return _per_step(optimizer, total_steps, warmup, lambda progress: 1 + (final - 1) * progress)


def exponential(optimizer: Optimizer, total_steps: int, *, warmup: int | float, final: float) -> LRScheduler:
    """Falls by the same share at each step, to `final` times the learning rate."""
    if final <= 0:
        raise ValueError(f"scheduler.final={final}: an exponential never reaches 0; give a share above it")
    return _per_step(optimizer, total_steps, warmup, lambda progress: final**progress)


def cosine(optimizer: Optimizer, total_steps: int, *, warmup: int | float, final: float) -> LRScheduler:
    """Half a cosine from 1 to `final` (Loshchilov and Hutter 2017, eq. 5, one cycle)."""
    return _per_step(optimizer, total_steps, warmup, lambda progress: _cosine(progress, final))


def cosine_restarts(
    optimizer: Optimizer, total_steps: int, *, warmup: int | float, final: float, cycles: int
) -> LRScheduler:
    """`cycles` equal cosines, each from 1 to `final` (Loshchilov and Hutter 2017, section 3)."""
    return _per_step(
        optimizer,
        total_steps,
        warmup,
        lambda progress: final if progress >= 1 else _cosine(round(progress * cycles, 12) % 1, final),
    )


def polynomial(
    optimizer: Optimizer, total_steps: int, *, warmup: int | float, final: float, power: float
) -> LRScheduler:
    return _per_step(optimizer, total_steps, warmup, lambda progress: final + (1 - final) * (1 - progress) ** power)


def wsd(optimizer: Optimizer, total_steps: int, *, warmup: int | float, final: float, decay: float) -> LRScheduler:
    """Warm-up, stable, decay: constant until the last `decay` share of the steps, then straight to `final`."""
    if not 0 < decay <= 1:
        raise ValueError(f"scheduler.decay={decay}: a share above 0 and up to 1")
    return _per_step(
        optimizer, total_steps, warmup, lambda progress: 1 + (final - 1) * max(0.0, progress - 1 + decay) / decay
    )


def one_cycle(optimizer: Optimizer, total_steps: int, *, rise: float, start: float, final: float) -> LRScheduler:
    """Cosine from `start` up to 1 over the `rise` share of the steps, then down to `final` (Smith 2018, section 4)."""
    if not 0 <= rise < 1:
        raise ValueError(f"scheduler.rise={rise}: a share from 0 to below 1")

    def curve(progress: float) -> float:
        if progress < rise:
            return _cosine(1 - progress / rise, start)
        return _cosine((progress - rise) / (1 - rise), final)

    return _per_step(optimizer, total_steps, 0, curve)


def plateau(
    optimizer: Optimizer, total_steps: int, *, warmup: int | float, reduce_by: float, patience: int, mode: str
) -> list[LRScheduler]:
    """A linear warm-up per step, and a cut to `reduce_by` after `patience` validations without a better metric."""
    steps = warmup_steps(warmup, total_steps)
    # LinearLR multiplies the present rate, so it leaves a later cut in place; a LambdaLR would undo it.
    rise = LinearLR(optimizer, start_factor=1 / (steps + 1), total_iters=steps)
    return [rise, ReduceLROnPlateau(optimizer, mode=mode, factor=reduce_by, patience=patience)]  # type: ignore[arg-type]


def _per_step(optimizer: Optimizer, total_steps: int, warmup: int | float, curve: Curve) -> LRScheduler:
    steps = warmup_steps(warmup, total_steps)
    return LambdaLR(optimizer, lambda step: factor(step, total_steps, steps, curve))


def _cosine(progress: float, final: float) -> float:
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
