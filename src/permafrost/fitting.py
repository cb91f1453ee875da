"""Training within the memory that there is."""

from pathlib import Path
from typing import TYPE_CHECKING

from permafrost.assembly import console, precision_of
from permafrost.config import Settings

if TYPE_CHECKING:
    import lightning.pytorch as lightning

    from permafrost.training.datamodule import DataModule
    from permafrost.training.module import FineTuning


def fit(
    trainer: "lightning.Trainer",
    module: "FineTuning",
    data: "DataModule",
    settings: Settings,
    checkpoint: Path | None = None,
) -> None:
    from permafrost.training.memory import told_what_to_set

    tokens, tries_first = settings.data.max_tokens_per_batch, settings.data.auto_batch
    with told_what_to_set(module, tokens, tries_first=tries_first):
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)


def parts_that_fit(settings: Settings, module: "FineTuning", data: "DataModule") -> int:
    from permafrost.training.hardware import resolve_device
    from permafrost.training.memory import fit_in_memory_

    device = resolve_device(settings.trainer.accelerator)
    parts = fit_in_memory_(module, data, precision_of(settings), device)
    if parts > 1:
        console.print(
            f"  memory holds a batch in {parts} parts: trainer.accumulate_grad_batches is {parts} times as many"
        )
    return parts


def with_parts_counted(settings: Settings, parts: int) -> Settings:
    """Where validation comes after a count of batches, as many batches are so many parts."""
    every = settings.trainer.val_check_interval
    counted = every * parts if isinstance(every, int) else every
    return settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"val_check_interval": counted})})
