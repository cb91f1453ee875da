"""The length of the gradient, before it is clipped."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class GradientNorm(Callback):
    """Logs `train/gradient_norm`: the L2 norm over all trained parameters at each optimizer step, before clipping."""

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        module.log("train/gradient_norm", norm)
        module.gradient_norm = norm  # by which the module clips, next
