"""Leaves out steps that would ruin the weights, goes back to the last checkpoint after several, and gives up."""

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from rich.console import Console
from torch import Tensor
from torch.optim import Optimizer

from permafrost.data.rows import WHERE, StoredRows
from permafrost.data.tokens.batching import Batch
from permafrost.errors import TrainingError
from permafrost.training.checkpoints import newest_good
from permafrost.training.processes import gathered
from permafrost.training.sealed import read_sealed
from permafrost.training.stability import (
    FEWEST,
    decides_on_device,
    gradient_norm,
    has_diverged,
    is_spike,
    leave_out_step_,
    leave_out_step_where_,
)

WINDOW = 128  # losses that a new one is compared with
NAMED = 5  # rows of a bad step
ADVICE = "lower optimizer.lr, warm up longer with scheduler.warmup, or clip more with trainer.gradient_clip_val"


class Step(NamedTuple):
    number: int
    loss: Tensor  # ()
    norm: Tensor  # ()
    batches: list[tuple[str, Tensor]]  # part, source rows


class Instability(Callback):
    """A step whose gradient is not finite is left out, on all processes as the gradient is the same on all.

    After `max_skips` in a row the weights of the last checkpoint come back; at the next such row, or where there is no
    checkpoint, the run ends. With `spike_z` a step is also left out whose loss is that many robust standard deviations
    above those before: for long training on much data, as the losses of small batches differ by nature.

    On a GPU steps are left out at once and told of every `trainer.log_every_n_steps`, so that it is not waited for.
    """

    def __init__(
        self,
        max_skips: int = 5,
        spike_z: float | None = None,
        rows: Mapping[str, StoredRows] | None = None,
        dirpath: Path | None = None,
    ):
        self.max_skips, self.spike_z, self.rows, self.dirpath = max_skips, spike_z, rows or {}, dirpath
        self.latest: deque[float] = deque(maxlen=WINDOW)  # losses
        self.first: float | None = None
        self.skipped = self.returns = 0
        self.loss = torch.tensor(0.0)
        self.batches: list[tuple[str, Tensor]] = []
        self.unread: list[Step] = []
        self.console = Console(highlight=False, soft_wrap=True)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "latest": list(self.latest), "skipped": self.skipped, "returns": self.returns}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first, self.latest = state_dict["first"], deque(state_dict["latest"], maxlen=WINDOW)
        self.skipped, self.returns = state_dict["skipped"], state_dict["returns"]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.loss, self.batches = torch.zeros((), device=module.device), []
        self.batches.append((batch.part, batch.source_rows))

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self.loss = self.loss + loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Optimizer) -> None:
        if isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None:
            return  # a gradient scaler leaves steps out by itself, and some at its start on purpose
        norm = gradient_norm(optimizer) if module.gradient_norm is None else module.gradient_norm
        step = Step(trainer.global_step, self._mean_loss(trainer), norm, self.batches)
        if step.norm.device.type == "cpu" or self.spike_z is not None or not decides_on_device(optimizer):
            bad = trainer.strategy.reduce_boolean_decision(self._is_bad(step), all=False)
            if bad:
                leave_out_step_(optimizer)
                module.gradient_norm = torch.zeros(())  # nothing is left to clip
            self._note(trainer, module, step, bad)
            return
        leave_out_step_where_(~torch.isfinite(step.norm), optimizer)
        self.unread.append(step)
        if len(self.unread) >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            unread, self.unread = self.unread, []
            for step in unread:
                self._note(trainer, module, step, self._is_bad(step))

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if module.skipped_in_a_row >= self.max_skips:  # here, as the optimizer has ended its step
            self._go_back(trainer, module)

    def _mean_loss(self, trainer: Trainer) -> Tensor:
        """Each process has its share of the step's mean, times their number."""
        if self.spike_z is None or trainer.world_size == 1:
            return self.loss
        return trainer.strategy.reduce(self.loss, reduce_op="mean")

    def _is_bad(self, step: Step) -> bool:
        if not torch.isfinite(step.norm):
            return True
        return self.spike_z is not None and is_spike(float(step.loss), list(self.latest), self.spike_z)

    def _note(self, trainer: Trainer, module: Any, step: Step, bad: bool) -> None:
        """Count and tell; what is far from the other losses is not kept as one of them."""
        if bad:
            module.skipped_in_a_row += 1
            self.skipped += 1
            self._tell(trainer, module, step)
            return
        module.skipped_in_a_row = 0
        self.latest.append(float(step.loss))
        self.first = self.latest[0] if self.first is None else self.first
        if has_diverged(self.first, list(self.latest)[-FEWEST:]):
            raise TrainingError(
                f"the run diverged: a train loss of {self.latest[-1]:.4g} at step {step.number + 1:,}, and of "
                f"{self.first:.4g} before the first; {ADVICE}"
            )

    def _tell(self, trainer: Trainer, module: Any, step: Step) -> None:
        """Of several processes the rows of those whose own loss is not finite; of all, where each one's is."""
        shares = gathered((float(step.loss), self._names(step)), trainer.world_size)
        spoiled = [names for loss, names in shares if not math.isfinite(loss)] or [names for _, names in shares]
        if trainer.is_global_zero:
            loss = sum(loss for loss, _ in shares) / len(shares)
            self.console.print(
                f"  step {step.number + 1}: loss {loss:.4g}, gradient {float(step.norm):.4g}: left out, "
                f"{module.skipped_in_a_row} in a row; its rows: {'; '.join(spoiled)}",
                markup=False,
            )

    def _names(self, step: Step) -> str:
        """file:line of the first of this process's rows."""
        rows = [(part, row) for part, of_batch in step.batches for row in of_batch.tolist()]
        wheres = {part: self.rows[part][WHERE] for part in {part for part, _ in rows} & set(self.rows)}
        named = [str(wheres[part][row]) if part in wheres else str(row) for part, row in rows[:NAMED]]
        return ", ".join(named) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")

    def _go_back(self, trainer: Trainer, module: Any) -> None:
        """To the weights and moments of the last checkpoint; the rows of the bad steps stay behind.

        Raises:
            TrainingError: that was done before, or there is none.
        """
        path = newest_good(self.dirpath.parent)[0] if self.dirpath else None
        if path is None or self.returns:
            raise TrainingError(
                f"the run diverged: {module.skipped_in_a_row} steps in a row had no finite gradient, "
                f"{self.skipped} in all, at step {trainer.global_step:,}; {ADVICE}"
            )
        self.returns += 1
        module.skipped_in_a_row = 0
        restore_weights_(trainer, module, read_sealed(path))
        if trainer.is_global_zero:
            self.console.print(f"  back to the weights of {path}, and on with the next rows", markup=False)


def restore_weights_(trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
    """Weights, their average and the optimizer's moments; learning rates stay as far on as they are."""
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    trained_tokens = module.trained_tokens
    module.on_load_checkpoint(checkpoint)
    module.trained_tokens = trained_tokens
    trainer.strategy.load_model_state_dict(checkpoint)
    averages = checkpoint["callbacks"].get("WeightAverage")  # of a run that began without one there is none
    kept = averages["average"] if averages else checkpoint["state_dict"]
    for name, value in module.averaged.items():
        value.copy_(kept[name])
    trainer.strategy.load_optimizer_state_dict(checkpoint)
    for optimizer, of_optimizer in zip(trainer.optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, of_optimizer, strict=True):
            group["lr"] = rate
