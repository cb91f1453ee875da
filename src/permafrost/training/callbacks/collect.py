"""Keeps what the model says of each test row."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from permafrost.tasks.base import Answers, Outputs, by_source_row
from permafrost.training.processes import gathered


class CollectOutputs(Callback):
    """What a part's task keeps of each source row of the test split, on every process alike."""

    def __init__(self, part: str, task: Answers) -> None:
        self.part, self.task = part, task
        self.kept: list[tuple[int, int, Tensor]] = []  # source row, row of the split, output

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch.part == self.part:
            self.kept += outputs or []

    def in_order(self, world_size: int) -> Outputs:
        return by_source_row(row for of_process in gathered(self.kept, world_size) for row in of_process)
