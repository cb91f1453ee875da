"""Keeps what the model says of each test row."""

from itertools import groupby
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from permafrost.tasks.base import Answers


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

    def in_order(self) -> list[list[Tensor]]:
        """Of each source row its windows' outputs, in the order of the source."""
        kept = self.kept
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, kept)
            kept = [row for process in gathered for row in process]
        ordered = sorted(kept, key=lambda row: row[:2])
        return [[output for _, _, output in windows] for _, windows in groupby(ordered, key=lambda row: row[0])]
