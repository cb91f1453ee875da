"""A run that is done, and is worked on again: its settings, its data and its model."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from permafrost.runs.assembly import Prepared
from permafrost.settings.schema import CompressionSection, Settings

if TYPE_CHECKING:
    from permafrost.data.tokens.batching import Batch
    from permafrost.model.gpt2 import GPT2WithHead

COMPRESSED = "compressed"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that is done: where it lies, its settings with what is to be done now, and its data."""

    run_dir: Path
    settings: Settings
    prepared: Prepared

    @property
    def plan(self) -> CompressionSection:
        return self.settings.compression

    @property
    def directory(self) -> Path:
        return self.run_dir / COMPRESSED / self.plan.name

    def beside(self, what: str) -> Path:
        """Where something is trained for it."""
        return self.directory.with_name(f"{self.plan.name}-{what}")

    def load(self) -> "GPT2WithHead":
        """Its model, all of it to be trained."""
        from permafrost.deployment.predictor import load_model
        from permafrost.settings.preflight import window_length

        return load_model(
            self.run_dir / "model",
            self.prepared.task,
            None,
            bidirectional=self.settings.model.attention == "bidirectional",
            window=window_length(self.settings),
        ).train()


def as_training(settings: Settings) -> Settings:
    """The run's own recipe, over all of the model and for the epochs of recovery, in this process alone."""
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
    freezing = settings.freezing.model_copy(update={"blocks": 0, "embeddings": False, "final_norm": False})
    trainer = settings.trainer.model_copy(
        update=alone | {"max_epochs": max(1, settings.compression.recover.epochs), "max_steps": -1}
    )
    return settings.model_copy(update={"freezing": freezing, "trainer": trainer, "logger": {}, "resume": "never"})


def calibration(run: Finished) -> Iterator["Batch"]:
    """The first batches of an epoch over the training rows."""
    from permafrost.data.tokens.batching import TokenBatching, padded_batch, shuffled_batches

    split, options = run.prepared.splits["train"], run.settings
    batching = TokenBatching(max_tokens=options.data.max_tokens_per_batch)
    planned = shuffled_batches(split.lengths, batching, seed=options.seed, epoch=0)
    return (padded_batch(split, rows) for rows in islice(planned, run.plan.calibration_batches))
