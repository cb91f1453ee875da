"""The length of the gradient, before it is clipped."""

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from permafrost.training.stability import gradient_norm


class GradientNorm(Callback):
    """Logs `train/gradient_norm`: the L2 norm over all trained parameters at each optimizer step, before clipping."""

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        norm = gradient_norm(optimizer)
        module.log("train/gradient_norm", norm)
        module.gradient_norm = norm  # by which the module clips, next
