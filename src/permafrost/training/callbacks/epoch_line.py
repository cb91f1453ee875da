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
        self.losses: list[Any] = []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": torch.stack(self.losses) if self.losses else torch.zeros(0)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = list(state_dict["losses"])

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "train/loss" in trainer.callback_metrics:
            self.losses.append(trainer.callback_metrics["train/loss"])

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not trainer.is_global_zero:
            return
        seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
        parts = [f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  step {trainer.global_step:,}"]
        if self.losses:
            parts.append(f"train loss {float(sum(self.losses)) / len(self.losses):.4f}")
        parts.append(f"validation loss {seen['validation/loss']:.4f}")
        for monitor in self.monitors:
            if monitor != "validation/loss":
                parts.append(f"{monitor.removeprefix('validation/')} {seen[monitor]:.4f}")
        if "train/tokens_per_second" in seen:
            parts.append(f"{seen['train/tokens_per_second']:,.0f} tokens/s, {seen['train/padding_share']:.1%} padding")
        self.losses.clear()
        self.console.print("  ".join(parts))
