"""The Lightning trainer, with the settings that every run has."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment

from permafrost.training.checkpoints import CheckpointFiles

# Said by the libraries of things that are so on purpose here.
EXPECTED_WARNINGS = (
    ".*does not have many workers which may be a bottleneck.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*You're resuming from a checkpoint that ended before the epoch ended.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Found .* module\\(s\\) in eval mode at the start of training.*",  # the frozen part
    ".*Metric `SpearmanCorrcoef` will save all targets and predictions.*",
    ".*It is recommended to use `self.log\\(.*sync_dist=True.*",  # the metrics have synchronised themselves
    ".*treespec, LeafSpec.*",
    ".*The `srun` command is available.*",
    ".*Trying to infer the `batch_size`.*",
)


def quiet_lightning() -> None:
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its greetings, and what we say ourselves


def slurm() -> list[SLURMEnvironment]:
    """Within a SLURM job its environment, without Lightning's own way to requeue: it saves in the middle of a step."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def make_trainer(
    options: Mapping[str, Any], *, run_dir: Path, precision: str, callbacks: Sequence[Any], loggers: Sequence[Logger]
) -> lightning.Trainer:
    """`options` are the `trainer=` group's values by Lightning's own names, but for precision, max_minutes and requeue.

    A count of batches between validations goes on over the end of an epoch: else short epochs would have none.
    """
    max_minutes, counts_batches = options["max_minutes"], isinstance(options["val_check_interval"], int)
    own = {name: value for name, value in options.items() if name not in ("max_minutes", "requeue")}
    if is_sharded := own["strategy"] == "fsdp":
        from permafrost.training.sharding import Sharded

        own["strategy"] = Sharded()
    # Deterministic torch else fills each new buffer, lest it be read before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return lightning.Trainer(
        **{**own, "precision": precision},
        check_val_every_n_epoch=None if counts_batches else 1,
        max_time=None if max_minutes is None else timedelta(minutes=max_minutes),
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[CheckpointFiles(), *slurm()],
        default_root_dir=run_dir,
        inference_mode=not is_sharded,  # weights that are made whole there serve in training, too
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the plan of batches cuts the shares itself
        reload_dataloaders_every_n_epochs=1,  # each epoch has a plan of its own
        enable_model_summary=False,
        enable_progress_bar=any(type(callback).__name__ == "RichProgressBar" for callback in callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
    )
