"""Checkpoints: what they hold of the model, how they reach the disk, and which of them a run goes on from.

The frozen weights are left out, as the pretrained model has them; a fingerprint tells whether they are still the same.
"""

from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor, nn

from permafrost.atomic import complete_or_absent, flush_to_disk
from permafrost.errors import ResourceError
from permafrost.model.freezing import frozen_parameters, weights_fingerprint

CHECKPOINTS = "checkpoints"
FROZEN = "frozen"  # key of the fingerprint


class CheckpointFiles(CheckpointIO):
    """Written beside the target, through to the disk, and renamed: a file is complete or absent. Tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with complete_or_absent(Path(path)) as partial:
            torch.save(checkpoint, partial)  # not through a buffer, which would hold it all in memory once more
            flush_to_disk(partial)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True, **unused: Any
    ) -> dict[str, Any]:
        return torch.load(path, map_location="cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def leave_out_frozen_(checkpoint: dict[str, Any], module: nn.Module, fingerprint: str) -> None:
    """Of the `state_dict` that Lightning has put together, keep what training changes."""
    frozen = {name for name, _ in frozen_parameters(module)}
    checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name not in frozen}
    checkpoint[FROZEN] = fingerprint


def put_in_frozen_(checkpoint: dict[str, Any], module: nn.Module, fingerprint: str) -> None:
    """Complete `state_dict` from the module itself.

    Raises:
        ResourceError: the module's frozen part is not the one that was trained over.
    """
    if checkpoint[FROZEN] != fingerprint:
        raise ResourceError(
            "the checkpoint was trained over other frozen weights than this run has; "
            "give the same model.path and the same freezing=, or start a new run in another hydra.run.dir"
        )
    checkpoint["state_dict"] |= dict(frozen_parameters(module))


def frozen_fingerprint(module: nn.Module) -> str:
    return weights_fingerprint(frozen_parameters(module))


def restore_best_(module: lightning.LightningModule, trainer: lightning.Trainer) -> str | None:
    """Load the weights of the best validation; returns their file, None where no checkpoint was kept."""
    checkpoint = trainer.checkpoint_callback
    path = getattr(checkpoint, "best_model_path", "")
    if not path:
        return None
    trained: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    module.load_state_dict(dict(frozen_parameters(module)) | trained)
    return path


def last_checkpoint(run_dir: Path) -> Path | None:
    path = run_dir / CHECKPOINTS / "last.ckpt"
    return path if path.exists() else None
