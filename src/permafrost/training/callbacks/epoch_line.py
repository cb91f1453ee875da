"""One line per validation: what a person wants to see of a run."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console


class EpochLine(Callback):
    """Prints epoch, mean training loss, validation loss, the monitored metrics and tokens per second.

    `monitor` is the run's, `of_parts` are those of its parts where it trains several tasks.
    """

    def __init__(self, monitor: str, of_parts: Sequence[str] = ()):
        self.monitors = list(dict.fromkeys([monitor, *of_parts]))
        self.console = Console(highlight=False, soft_wrap=True)
        # Of the batches since the last line; the sum stays where the losses are, so that none is waited for.
        self.loss_sum, self.num_losses = torch.tensor(0.0), 0

    def state_dict(self) -> dict[str, Any]:
        return {"loss_sum": self.loss_sum.cpu(), "num_losses": self.num_losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss_sum, self.num_losses = state_dict["loss_sum"], state_dict["num_losses"]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "train/loss" in trainer.callback_metrics:
            self.loss_sum = self.loss_sum + trainer.callback_metrics["train/loss"]
            self.num_losses += 1

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loss_sum, num_losses = self.loss_sum, self.num_losses
        self.loss_sum, self.num_losses = torch.tensor(0.0), 0
        if not trainer.is_global_zero:
            return
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step:,}"]
        if num_losses:
            parts.append(f"train loss {float(loss_sum) / num_losses:.4f}")
        parts.append(f"validation loss {seen['validation/loss']:.4f}")
        for monitor in self.monitors:
            if monitor != "validation/loss":
                parts.append(f"{monitor.removeprefix('validation/')} {seen[monitor]:.4f}")
        if "train/tokens_per_second" in seen:
            parts.append(f"{seen['train/tokens_per_second']:,.0f} tokens/s, {seen['train/padding_share']:.1%} padding")
        self.console.print("  ".join(parts))
