"""Keeps what the model says of each test row."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class CollectOutputs(Callback):
    """`row_ids` (N,) and `logits` (N, K) of the test split in the rows' order, on every process alike."""

    def __init__(self) -> None:
        self.parts: list[tuple[Tensor, Tensor]] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is not None:
            row_ids, logits = outputs
            self.parts.append((row_ids.cpu(), logits.float().cpu()))

    def in_order(self) -> Tensor | None:
        parts = self.parts
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for process in gathered for part in process]
        if not parts:
            return None
        order = torch.cat([row_ids for row_ids, _ in parts]).argsort()
        return torch.cat([logits for _, logits in parts])[order]
