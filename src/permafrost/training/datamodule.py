"""Tokenised splits to batches: the order of the rows, the place in the epoch, and the number of steps to come.

A part is one of the tasks that are trained together; a run of one task has one part, with the name "".
"""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from permafrost.data.tokens.batching import (
    Batch,
    Batching,
    PlannedBatch,
    PlannedBatches,
    at_least,
    in_parts,
    loss_scales,
    ordered_batches,
    padded_batch,
)
from permafrost.data.tokens.mixing import mixed_batches
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.model.activation_store import ActivationStore

EVERY_BATCH = "epoch"  # accumulate over the whole epoch: one optimizer step, true gradient descent


class Batches(Dataset[Batch]):
    """A split of every part, indexed by a whole batch: part, row positions and loss scale -> a padded `Batch`."""

    def __init__(
        self,
        splits: Mapping[str, TokenizedSplit],
        stores: Mapping[str, ActivationStore],
        of_teacher: ActivationStore | None = None,
    ):
        self.splits, self.stores, self.of_teacher = splits, stores, of_teacher

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        rows, store = planned.rows, self.stores.get(planned.part)
        batch = padded_batch(self.splits[planned.part], rows, planned.loss_scale)
        return batch._replace(
            part=planned.part,
            trunk_states=store.padded(rows) if store else None,
            teacher_states=self.of_teacher.padded(rows) if self.of_teacher else None,
        )


class DataModule(lightning.LightningDataModule):
    """Batches of one epoch at a time; every epoch's order is a function of the seed and the epoch.

    The place within the epoch is part of its state, counted in batches done, so that a resumed run goes on with the
    next batch. `accumulate` is in batches per optimizer step, or "epoch"; `temperature` mixes several parts;
    `of_teacher` holds what a teacher makes of the training rows; `row_weights` is how often each training row of a
    part stands in an epoch, once where there are none.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, TokenizedSplit]],
        stores: Mapping[str, Mapping[str, ActivationStore]] | None = None,
        *,
        batching: Batching,
        evaluation_batching: Batching,
        accumulate: int | str,
        num_workers: int,
        seed: int,
        temperature: float = 1.0,
        of_teacher: ActivationStore | None = None,
        row_weights: Mapping[str, np.ndarray] | None = None,
    ):
        super().__init__()
        self.row_weights = row_weights or {}
        self.parts, self.stores, self.temperature = parts, stores or {}, temperature
        self.of_teacher = of_teacher
        self.batching, self.evaluation_batching = batching, evaluation_batching
        self.num_workers, self.seed = num_workers, seed
        self.accumulate_as_set = accumulate
        self._most_batches: dict[int, int] = {}  # of an epoch, by how many epochs there are
        self.parts_per_batch = 1  # in which memory holds them; a step accumulates over as many more
        self.resume_at: tuple[int, int] = (0, 0)  # epoch, batches done in it
        self.tokens_read = 0  # from the stores, by this process

    @property
    def attached(self) -> lightning.Trainer:
        assert self.trainer is not None, "the trainer attaches itself before it asks for batches"
        return self.trainer

    def accumulate(self, max_epochs: int) -> int:
        """Batches per optimizer step, as a number; parts of batches, where they are cut."""
        return self.parts_per_batch * self._planned_per_step(max_epochs)

    def _planned_per_step(self, max_epochs: int) -> int:
        if self.accumulate_as_set != EVERY_BATCH:
            return int(self.accumulate_as_set)
        if max_epochs not in self._most_batches:
            self._most_batches[max_epochs] = max(len(self._planned(epoch)) for epoch in range(max_epochs))
        return self._most_batches[max_epochs]

    def total_steps(self, max_epochs: int, max_steps: int = -1) -> int:
        """Optimizer steps of the whole run: known before it starts, which schedules need."""
        accumulate, steps = self._planned_per_step(max_epochs), 0
        for epoch in range(max_epochs):
            if 0 <= max_steps <= steps:  # no more epochs than there are steps for are drawn up
                return max_steps
            steps += -(-len(self._planned(epoch)) // accumulate)
        return steps if max_steps < 0 else min(steps, max_steps)

    def reads(self, max_epochs: int, max_steps: int, val_check_interval: int | float) -> dict[str, dict[str, float]]:
        """Of each part how often a run is to read each split: known before it starts, but for where max_minutes end."""
        planned, every = self._planned(0), val_check_interval
        per_epoch = -(-len(planned) // self._planned_per_step(max_epochs))
        epochs = max_epochs if max_steps < 0 else min(max_epochs, max_steps / per_epoch)
        validations = int(epochs * len(planned) / every if isinstance(every, int) else epochs / every)
        reads: dict[str, dict[str, float]] = {}
        for part, splits in self.parts.items():
            lengths = splits["train"].lengths
            in_epoch = sum(int(lengths[rows].sum()) for of_part, rows in planned if of_part == part)
            train = epochs * in_epoch / int(lengths.sum())
            reads[part] = {"train": train, "validation": validations + 1, "test": 1}  # the best is validated again
        return reads

    def train_dataloader(self) -> DataLoader:
        epoch = self.attached.current_epoch
        batches, world_size = self._planned(epoch), self.attached.world_size
        targets = np.array([self.parts[part]["train"].num_targets[rows].sum() for part, rows in batches], np.float64)
        scales = loss_scales(targets, self._planned_per_step(self.attached.max_epochs or 1), world_size)
        planned = [PlannedBatch(rows, float(scale), part) for (part, rows), scale in zip(batches, scales, strict=True)]
        planned = in_parts(planned, self.parts_per_batch)
        start = self.resume_at[1] if self.resume_at[0] == epoch else 0
        rank = self.attached.global_rank
        return self._loader("train", PlannedBatches(planned, start=start, rank=rank, world_size=world_size))

    def val_dataloader(self) -> DataLoader:
        return self.evaluation_loader("validation", self.attached.global_rank, self.attached.world_size)

    def test_dataloader(self) -> DataLoader:
        return self.evaluation_loader("test", self.attached.global_rank, self.attached.world_size)

    def evaluation_loader(self, name: str, rank: int = 0, world_size: int = 1) -> DataLoader:
        """All rows of a split once, part by part; processes take turns at the batches."""
        batches = [
            PlannedBatch(rows, 1.0, part)
            for part, splits in self.parts.items()
            for rows in ordered_batches(splits[name].lengths, self.evaluation_batching)
        ]
        return self._loader(name, PlannedBatches(at_least(world_size, batches)[rank::world_size]))

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Counts here, as a store in a loader's worker counts for itself alone."""
        if batch.trunk_states is not None:
            self.tokens_read += int(batch.lengths.sum())
        return batch

    def state_dict(self) -> dict[str, Any]:
        progress = self.attached.fit_loop.epoch_loop.batch_progress.current
        return {"epoch": self.attached.current_epoch, "batches_done": progress.completed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.resume_at = (state["epoch"], state["batches_done"])

    def longest_batch(self) -> PlannedBatch:
        """Of the first epoch the one that takes most memory, or its largest part."""
        planned = [PlannedBatch(rows, 1.0, part) for part, rows in self._planned(0)]
        lengths = {part: splits["train"].lengths for part, splits in self.parts.items()}
        cut = in_parts(planned, self.parts_per_batch)
        return max(cut, key=lambda batch: len(batch.rows) * int(lengths[batch.part][batch.rows].max()))

    def _planned(self, epoch: int) -> list[tuple[str, np.ndarray]]:
        lengths = {part: splits["train"].lengths for part, splits in self.parts.items()}
        return mixed_batches(
            lengths,
            self.batching,
            temperature=self.temperature,
            seed=self.seed,
            epoch=epoch,
            weights=self.row_weights,
        )

    def batches(self, name: str) -> Batches:
        splits = {part: splits[name] for part, splits in self.parts.items()}
        stores = {part: stores[name] for part, stores in self.stores.items() if name in stores}
        of_teacher = self.of_teacher if name == "train" else None
        for store in [*stores.values(), of_teacher]:
            if store is not None:
                store.mark_used()  # by each epoch
        return Batches(splits, stores, of_teacher)

    def _loader(self, name: str, sampler: PlannedBatches) -> DataLoader:
        return DataLoader(
            self.batches(name),
            sampler=sampler,
            batch_size=None,  # the sampler hands out whole batches
            collate_fn=_as_it_is,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(self.seed),  # else each iterator draws from the global one
        )


def _as_it_is(batch: Any) -> Batch:
    return batch
