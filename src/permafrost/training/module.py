"""The one LightningModule: the same step for training, validation and test, of one task or of several together."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, get_args

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MetricCollection, SumMetric

from permafrost.data.tokens.batching import Batch
from permafrost.model.freezing import frozen_parameters
from permafrost.tasks.base import LOSS, Answers, LossFunction, LossSum, Stage, Task, in_part
from permafrost.training.checkpoints import (
    check_read_by_all,
    frozen_fingerprint,
    leave_out_frozen_,
    put_in_averaged_,
    put_in_frozen_,
)
from permafrost.training.processes import gathered

MakeOptimizer = Callable[[nn.Module], Optimizer]
MakeSchedulers = Callable[[Optimizer], list[LRScheduler]]


class Part(NamedTuple):
    """`taught` is trained on in place of the task's own loss; validation and test show the task's."""

    model: nn.Module
    task: Task
    loss: LossFunction
    taught: LossSum | None = None

    @property
    def trained_on(self) -> LossSum:
        return self.taught or self.task.loss_sum


class FineTuning(lightning.LightningModule):
    """Logs `train/loss` per step, and `validation/...` and `test/...` for the loss and each metric of the task.

    `model` holds all that is trained. Of several `parts` each is run on its own batches and logs under its name, as
    `validation/PART/...`; `validation/loss` is then the mean of their losses. A single part has the name "".
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Mapping[str, Part],
        *,
        make_optimizer: MakeOptimizer,
        make_schedulers: MakeSchedulers,
        monitor: str,
        compile: bool,
    ):
        super().__init__()
        self.model, self.parts, self.losses = model, parts, nn.ModuleList(part.loss for part in parts.values())
        self.make_optimizer, self.make_schedulers, self.monitor = make_optimizer, make_schedulers, monitor
        self.compiles = compile
        self.loss_sums = {
            name: torch.compile(part.trained_on) if compile else part.trained_on for name, part in parts.items()
        }
        self.gradient_norm: Tensor | None = None  # of this step, where a callback has measured it
        self.batch_shape: tuple[int, ...] = (0, 0)  # rows and tokens of the latest, for who asks why memory ran out
        self.averaged: Mapping[str, Tensor] = {}  # the trained weights over the latest steps, where a callback keeps it
        self.skipped_in_a_row = 0  # steps up to this one, by the callback that leaves them out
        self.trained_tokens = torch.tensor(0)  # real ones, of this process, over all starts of a resumed run
        self.metrics = nn.ModuleDict(
            {
                f"{stage}/{name}": _stage_metrics(part.task, stage)
                for stage in get_args(Stage)
                for name, part in parts.items()
            }
        )
        # By this name DDP knows what it need not send to the other processes.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in frozen_parameters(self)]

    def setup(self, stage: str) -> None:
        """Of frozen weights as they were read: before a strategy cuts them to pieces, or a precision rounds them."""
        if stage == "fit" and (self.trainer.world_size > 1 or self.trainer.precision in ("bf16-true", "16-true")):
            check_read_by_all(self.frozen_fingerprint, self.trainer.world_size)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss_sum = self.loss_of(batch)
        self.trained_tokens = self.trained_tokens + batch.lengths.sum()
        self.log("train/loss", loss_sum.detach() / batch.num_targets, batch_size=1)
        return loss_sum * batch.loss_scale

    def loss_of(self, batch: Batch) -> Tensor:
        """() the sum over the batch's targets of what is trained on."""
        self.batch_shape = tuple(batch.input_ids.shape)
        part = self.parts[batch.part]
        return self.loss_sums[batch.part](part.model, batch, part.loss)[0]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trained_tokens"] = sum(gathered(int(self.trained_tokens), self.trainer.world_size))
        if self.averaged and "optimizer_states" not in checkpoint:  # to use, and not to go on from
            put_in_averaged_(checkpoint, self, self.averaged)
        leave_out_frozen_(checkpoint, self, self.frozen_fingerprint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.skipped_in_a_row = 0  # steps up to this one, by the callback that leaves them out
        self.trained_tokens = torch.tensor(checkpoint["trained_tokens"] if self.trainer.is_global_zero else 0)
        put_in_frozen_(checkpoint, self, self.frozen_fingerprint)

    @cached_property
    def frozen_fingerprint(self) -> str:
        return frozen_fingerprint(self)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "validation")

    def test_step(self, batch: Batch, batch_idx: int) -> Any:
        """Of each row its place in the source and in the split, and what answers need; nothing where they need none."""
        outputs, task = self._evaluate(batch, "test"), self.parts[batch.part].task
        if not isinstance(task, Answers) or outputs is None:
            return None
        by_row = [output.float().cpu() for output in task.by_row(outputs, batch)]
        return list(zip(batch.source_rows.tolist(), batch.row_ids.tolist(), by_row, strict=True))

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("validation")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """On a CPU by the norm that is known already, and not at all where it is within the limit: torch would read all
        gradients once more, and multiply them by 1."""
        norm, self.gradient_norm = self.gradient_norm, None
        if self.device.type != "cpu" or norm is None or gradient_clip_algorithm != "norm" or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif not norm <= gradient_clip_val:  # nor where it is not a number
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.model)
        return [optimizer], [_scheduler_config(s, self.monitor) for s in self.make_schedulers(optimizer)]

    def _evaluate(self, batch: Batch, stage: str) -> Tensor | None:
        model, task, loss, _ = self.parts[batch.part]
        loss_sum, outputs = task.loss_sum(model, batch, loss)
        metrics = self.metrics[f"{stage}/{batch.part}"]
        metrics["loss_sum"].update(loss_sum)  # type: ignore[index]
        metrics["num_targets"].update(batch.num_targets)  # type: ignore[index]
        if isinstance(task, Answers) and outputs is not None:
            task.update_metrics(metrics["task"], outputs, batch)  # type: ignore[index]
        return outputs

    def _log_metrics(self, stage: Stage) -> None:
        by_part = {name: self._metrics_of(name, stage) for name in self.parts}
        values = {in_part(name, key): value for name, of in by_part.items() for key, value in of.items()}
        values |= {LOSS: torch.stack([of[LOSS] for of in by_part.values()]).mean()}
        self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()})

    def _metrics_of(self, name: str, stage: Stage) -> dict[str, Tensor]:
        metrics: Any = self.metrics[f"{stage}/{name}"]
        num_targets, task = metrics["num_targets"].compute(), self.parts[name].task
        loss = metrics["loss_sum"].compute() / num_targets
        values = {LOSS: loss, **task.metrics_of_loss(loss, num_targets, stage), **metrics["task"].compute()}
        for metric in metrics.values():
            metric.reset()
        return values


def _stage_metrics(task: Task, stage: Stage) -> nn.ModuleDict:
    # a loss that is not a number is to be seen, not left out
    sums = {name: SumMetric(nan_strategy="disable") for name in ("loss_sum", "num_targets")}
    of_outputs = task.build_metrics(stage) if isinstance(task, Answers) else MetricCollection({})
    return nn.ModuleDict({**sums, "task": of_outputs})


def _scheduler_config(scheduler: LRScheduler, monitor: str) -> dict[str, Any]:
    if isinstance(scheduler, ReduceLROnPlateau):
        return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor, "reduce_on_plateau": True}
    return {"scheduler": scheduler, "interval": "step"}
