"""The one LightningModule: a model, a task and a loss; the same step for training, validation and test."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, get_args

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import SumMetric

from permafrost.data.batching import Batch
from permafrost.tasks.base import LOSS, LossFunction, Stage, Task
from permafrost.training.checkpoints import frozen_fingerprint, leave_out_frozen_, put_in_frozen_

MakeOptimizer = Callable[[nn.Module], Optimizer]
MakeSchedulers = Callable[[Optimizer], list[LRScheduler]]


class FineTuning(lightning.LightningModule):
    """Logs `train/loss` per step, and `validation/...` and `test/...` for the loss and each metric of the task."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        loss: LossFunction,
        *,
        make_optimizer: MakeOptimizer,
        make_schedulers: MakeSchedulers,
        monitor: str,
        compile: bool,
    ):
        super().__init__()
        self.model, self.task, self.loss = model, task, loss
        self.make_optimizer, self.make_schedulers, self.monitor = make_optimizer, make_schedulers, monitor
        self.loss_sum = torch.compile(task.loss_sum, dynamic=False) if compile else task.loss_sum
        self.trained_tokens = torch.tensor(0)  # real ones, of this process, over all parts of a resumed run
        self.metrics = nn.ModuleDict({stage: _stage_metrics(task, stage) for stage in get_args(Stage)})

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss_sum, _ = self.loss_sum(self.model, batch, self.loss)
        self.trained_tokens = self.trained_tokens + batch.lengths.sum()
        self.log("train/loss", loss_sum.detach() / batch.num_targets, batch_size=1)
        return loss_sum * batch.loss_scale

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained_tokens"] = int(self.trained_tokens)
        leave_out_frozen_(checkpoint, self, self.frozen_fingerprint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.trained_tokens = torch.tensor(checkpoint["trained_tokens"])
        put_in_frozen_(checkpoint, self, self.frozen_fingerprint)

    @cached_property
    def frozen_fingerprint(self) -> str:
        return frozen_fingerprint(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "validation")

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """Of each row its place in the source and in the split, and what answers need; nothing where they need none."""
        outputs = self._evaluate(batch, "test")
        if outputs is None:
            return None
        by_row = [output.float().cpu() for output in self.task.by_row(outputs, batch)]
        return list(zip(batch.source_rows.tolist(), batch.row_ids.tolist(), by_row, strict=True))

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("validation")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model)
        return [optimizer], [_scheduler_config(s, self.monitor) for s in self.make_schedulers(optimizer)]

    def _evaluate(self, batch: Batch, stage: str) -> Tensor | None:
        loss_sum, logits = self.task.loss_sum(self.model, batch, self.loss)
        metrics = self.metrics[stage]
        metrics["loss_sum"].update(loss_sum)  # type: ignore[index]
        metrics["num_targets"].update(batch.num_targets)  # type: ignore[index]
        self.task.update_metrics(metrics["task"], logits, batch)  # type: ignore[index]
        return logits

    def _log_metrics(self, stage: str) -> None:
        metrics = self.metrics[stage]
        loss = metrics["loss_sum"].compute() / metrics["num_targets"].compute()  # type: ignore[index]
        values = {LOSS: loss, **self.task.metrics_of_loss(loss), **metrics["task"].compute()}  # type: ignore[index]
        for metric in metrics.values():  # type: ignore[operator]
            metric.reset()
        self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()})


def _stage_metrics(task: Task, stage: Stage) -> nn.ModuleDict:
    # a loss that is not a number is to be seen, not left out
    sums = {name: SumMetric(nan_strategy="disable") for name in ("loss_sum", "num_targets")}
    return nn.ModuleDict({**sums, "task": task.build_metrics(stage)})


def _scheduler_config(scheduler: LRScheduler, monitor: str) -> dict[str, Any]:
    if isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor, "reduce_on_plateau": True}
    return {"scheduler": scheduler, "interval": "step"}
