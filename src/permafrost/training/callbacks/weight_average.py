"""The weights averaged over the latest steps: what is validated, kept as the best, tested and exported."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from permafrost.model.freezing import trainable


class WeightAverage(Callback):
    """An exponential moving average of what is trained, in float32 (Polyak and Juditsky 1992; Morales-Brotons et al.
    2024, arXiv:2411.18704). Training itself goes on with the weights as they are.

    At step t its decay is (1 + t) / (10 + t) at most, so that a short run is not an average of its beginning. The best
    checkpoint has the average, by way of the module; the one to go on from has both. Lightning's own callback copies
    the frozen part as well, and a checkpoint of weights alone does not have its average.
    """

    def __init__(self, decay: float = 0.99):
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay}: between 0 and 1, as 0.99, which averages over some hundred steps")
        self.decay, self.step = decay, 0
        self.average: dict[str, Tensor] = {}
        self.held: list[Tensor] = []  # while others stand in their place

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.step, self.average = state_dict["step"], state_dict["average"]

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        weights = dict(trainable(module))
        begun = self.average or {name: weight.detach().float().clone() for name, weight in weights.items()}
        self.average = {name: value.to(weights[name].device) for name, value in begun.items()}
        self.step = trainer.global_step
        module.averaged = self.average

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *unused: object) -> None:
        if trainer.global_step == self.step:  # between optimizer steps
            return
        self.step = trainer.global_step
        new = 1 - min(self.decay, (1 + self.step) / (10 + self.step))
        weights = [weight.float() for _, weight in trainable(module)]
        torch._foreach_lerp_(list(self.average.values()), weights, new)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self.held = [weight.detach().clone() for _, weight in trainable(module)]
            put_in_(module, self.average.values())

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            put_in_(module, self.held)
            self.held = []

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Where no best was kept, the result is the average; there is none where there was no step to train."""
        if self.average:
            put_in_(module, self.average.values())


@torch.no_grad()
def put_in_(module: nn.Module, values: Iterable[Tensor]) -> None:
    for (_, weight), value in zip(trainable(module), values, strict=True):
        weight.copy_(value)
