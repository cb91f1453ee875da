"""Checkpoints: what they hold of the model, how they reach the disk, and which of them a run goes on from.

The frozen weights are left out, as the pretrained model has them; a fingerprint tells whether they are still the same.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor, nn

from permafrost.errors import DataError, ResourceError
from permafrost.model.freezing import frozen_parameters, trainable, weights_fingerprint
from permafrost.storage.atomic import flush_to_disk
from permafrost.training.processes import gathered
from permafrost.training.sealed import cannot_write, fault_of, peek, read_sealed, write_sealed

CHECKPOINTS = "checkpoints"
FROZEN = "frozen"  # key of the fingerprint
NEXT, LAST, PREVIOUS = "next.ckpt", "last.ckpt", "previous.ckpt"  # the newest first


class CheckpointFiles(CheckpointIO):
    """Sealed files, complete or absent. Tensors only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_sealed(checkpoint, Path(path))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True, **unused: Any
    ) -> dict[str, Any]:
        return read_sealed(Path(path))

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


def put_in_averaged_(checkpoint: dict[str, Any], module: nn.Module, averaged: Mapping[str, Tensor]) -> None:
    """In place of the weights of the latest step, under each of their names."""
    by_weight = {id(weight): averaged[name] for name, weight in trainable(module)}
    named = module.named_parameters(remove_duplicate=False)
    checkpoint["state_dict"] |= {name: by_weight[id(w)].to(w.dtype) for name, w in named if id(w) in by_weight}


def frozen_fingerprint(module: nn.Module) -> str:
    return weights_fingerprint(frozen_parameters(module))


def check_read_by_all(fingerprint: str, world_size: int) -> None:
    """Frozen weights are not sent from one process to the others, as trained ones are: each has read them itself.

    Raises:
        ResourceError: they are not the same.
    """
    if len(set(gathered(fingerprint, world_size))) > 1:
        raise ResourceError("the processes have read different frozen weights; give all of them the same model.path")


def restore_best_(module: lightning.LightningModule, trainer: lightning.Trainer) -> None:
    """Load the weights of the best validation, where a checkpoint of them was kept."""
    checkpoint = trainer.checkpoint_callback
    path = getattr(checkpoint, "best_model_path", "")
    if not path:
        return
    if fault := fault_of(Path(path)):
        raise DataError(f"{path} is damaged: {fault}; train again in another hydra.run.dir")
    trained: dict[str, Tensor] = peek(Path(path))["state_dict"]
    module.load_state_dict(dict(frozen_parameters(module)) | trained)


def check_room(directory: Path, module: nn.Module, *, averages: bool = False) -> None:
    """Find out before training whether the checkpoints can be written: of each trained weight three values, and its
    average.

    Raises:
        ResourceError: the directory may not be written, or the disk has too little room.
    """
    probe = directory / "probe.partial"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"?")
        flush_to_disk(probe)
        probe.unlink()
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise ResourceError(cannot_write(directory, error)) from error
    of_one = sum(w.numel() * (3 * w.element_size() + (4 if averages else 0)) for _, w in trainable(module))
    needed = of_one * (1 + sum(not (directory / name).exists() for name in (LAST, PREVIOUS)))
    if free < needed:
        raise ResourceError(
            f"checkpoints need {needed / 2**20:,.0f} MB in {directory}, and {free / 2**20:,.0f} are free; "
            "free some space, set another hydra.run.dir, or leave them out with callbacks.last=null"
        )


def shift(directory: Path) -> None:
    """The checkpoint just written becomes the last one, and that the previous one.

    A process that is killed between the two renames leaves both, under names that `newest_good` looks at.
    """
    last = directory / LAST
    if last.exists():
        last.replace(directory / PREVIOUS)
    (directory / NEXT).replace(last)


def newest_good(path: Path) -> tuple[Path | None, list[str]]:
    """Of a run directory the newest checkpoint that is whole, and what is wrong with those newer than it.

    `path` may also be a checkpoint itself. Without any there is None to go on from.

    Raises:
        DataError: there are some, and all of them are damaged.
    """
    names = [path / CHECKPOINTS / name for name in (NEXT, LAST, PREVIOUS)]
    found = [path] if path.is_file() else [name for name in names if name.exists()]
    damaged: list[str] = []
    for candidate in found:
        fault = fault_of(candidate)
        if fault is None:
            return candidate, damaged
        damaged.append(f"{candidate} is damaged: {fault}")
    if damaged:
        told = "\n  ".join(damaged)
        raise DataError(f"no checkpoint is whole; train again in another hydra.run.dir\n  {told}")
    return None, []
