"""Weights that stay zero while the others are trained."""

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

Parameters = Mapping[str, nn.Parameter]
RAMP, UPDATES = 0.5, 50  # the share of training in which masks may change, and how often they do


class KeepSparse(Callback):
    """`masks_at` gives the masks at a progress from 0 to 1, which is 1 from half of training on; `observe` sees the
    gradients of each step before."""

    def __init__(
        self,
        parameters: Parameters,
        masks_at: Callable[[float], Mapping[str, Tensor]],
        *,
        total_steps: int,
        observe: Callable[[Parameters], None] | None = None,
    ):
        self.parameters, self.masks_at, self.observe = parameters, masks_at, observe
        self.ramp_steps = max(1, int(RAMP * total_steps))
        self.every, self.done = max(1, self.ramp_steps // UPDATES), -1
        self.masks: Mapping[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        if self.observe and trainer.global_step <= self.ramp_steps:
            self.observe(self.parameters)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *unused: object) -> None:
        step = trainer.global_step
        if step == self.done:  # between optimizer steps
            return
        self.done = step
        if not self.masks or (step <= self.ramp_steps and (step % self.every == 0 or step == self.ramp_steps)):
            self.masks = self.masks_at(min(1.0, step / self.ramp_steps))
        for name, mask in self.masks.items():
            self.parameters[name].mul_(mask)
