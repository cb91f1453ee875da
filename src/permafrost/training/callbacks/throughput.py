"""How fast training goes, in real tokens: padding is not counted as work done, but as waste."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from permafrost.data.tokens.batching import Batch
from permafrost.model.flat_rows import num_computed


class Throughput(Callback):
    """Logs, over the batches since the last validation:

    | key | unit |
    |---|---|
    | `train/tokens_per_second` | real tokens per second of training, validation left out |
    | `train/padding_share` | share of computed positions that were padding, or filled a batch up (model/flat_rows.py) |
    | `train/epoch_seconds` | seconds of those batches, from the first one's start to the last one's end |
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.tokens = self.computed = 0
        self.seconds, self.started_at, self.first_at = 0.0, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        elapsed = time.perf_counter() - self.first_at if self.first_at else 0.0
        return {"tokens": self.tokens, "computed": self.computed, "seconds": self.seconds, "elapsed": elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.computed, self.seconds = (state_dict[name] for name in ("tokens", "computed", "seconds"))
        self.first_at = time.perf_counter() - state_dict["elapsed"] if state_dict["elapsed"] else 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.started_at = time.perf_counter()
        self.first_at = self.first_at or self.started_at

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        tokens = int(batch.lengths.sum())
        self.tokens += tokens
        with trainer.precision_plugin.forward_context():  # which is what a batch is filled up by
            self.computed += num_computed(batch.input_ids, is_compiled=bool(module.compiles))
        self.seconds += time.perf_counter() - self.started_at

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.seconds and trainer.state.fn == TrainerFn.FITTING:
            # of all processes together
            module.log("train/tokens_per_second", self.tokens / self.seconds, sync_dist=True, reduce_fx="sum")
            module.log("train/padding_share", 1 - self.tokens / self.computed)
            module.log("train/epoch_seconds", time.perf_counter() - self.first_at)
        self._reset()
