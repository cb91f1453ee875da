"""Saves between steps what it takes to go on as if the run had never stopped, and stops it there when asked to."""

import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from permafrost.errors import DataError
from permafrost.storage.atomic import complete_or_absent
from permafrost.training.callbacks.weight_average import WeightAverage
from permafrost.training.checkpoints import NEXT, check_room, shift
from permafrost.training.loggers import sizes_of_logs
from permafrost.training.processes import gathered
from permafrost.training.random_state import random_state, restore_random_state
from permafrost.training.sealed import fault_of, peek
from permafrost.training.stopping import REQUEUE, Stopped, StopRequests, requeue_job

STATE = "resume_point"  # key in a checkpoint
VERSION = 2  # raise it when a checkpoint holds other things
SECONDS = {"s": 1, "min": 60, "h": 3600}


class ResumePoint(Callback):
    """Saves `last.ckpt`, and keeps the one before as `previous.ckpt`: after each validation, when `save_every` is over
    (steps, or a time such as 10min), at the end, and when a signal asks the run to stop, which it then does.

    A step is over when the next batch is about to begin: its validation is done then, and what other callbacks make
    of it. `notes` go into the checkpoint for the program that goes on from it. It has to come first of the callbacks.
    """

    def __init__(
        self, dirpath: Path, save_every: int | str, notes: Mapping[str, Any] | None = None, requeue: bool = False
    ) -> None:
        self.directory, self.notes = Path(dirpath), dict(notes or {})
        self.every_steps, self.every_seconds = interval(save_every)
        self.requests = StopRequests(requeue=requeue)
        self.loaded: dict[str, Any] | None = None  # of the checkpoint that this run goes on from
        self.at_end = self.validated = False
        self.saved_step, self.saved_at = -1, time.monotonic()

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            averages = any(isinstance(callback, WeightAverage) for callback in trainer.callbacks)  # type: ignore[attr-defined]
            check_room(self.directory, module, averages=averages)
        stopped = [c for c in trainer.callbacks if isinstance(c, EarlyStopping) and c.wait_count >= max(1, c.patience)]  # type: ignore[attr-defined]
        trainer.should_stop = trainer.should_stop or bool(stopped)  # as it was before: Lightning does not keep it

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.requests.listen()  # here, as the trainer has set handlers of its own just before
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._go_on(trainer)
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients that wait for the step's other batches are in no checkpoint
        asked = self.requests.received
        if not trainer.strategy.reduce_boolean_decision(bool(asked) or self._is_due(trainer, module), all=False):
            return
        self._save(trainer)
        self._stop_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.validated = trainer.state.fn == TrainerFn.FITTING

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.at_end = True
        self._save(trainer)
        self.at_end = False
        self._stop_if_asked(trainer)
        self.requests.stop_listening()

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.loaded:  # nothing was left to train; the epoch it ended in counts, as it does at the end of training
            epochs: Any = trainer.fit_loop.epoch_progress.current
            epochs.processed = epochs.completed = epochs.started
        self._restore(trainer)
        unshifted = self.directory / NEXT  # of a start that was killed in its last save: nothing was saved since
        if trainer.is_global_zero and unshifted.exists() and fault_of(unshifted) is None:
            shift(self.directory)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.requests.stop_listening()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        for logger in trainer.loggers:
            logger.save()  # so that its files have all that was logged
        checkpoint[STATE] = {
            "random": gathered(random_state(), trainer.world_size),
            "seen": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "logs": sizes_of_logs(self.directory.parent),
            "notes": self.notes,
            "version": VERSION,
        }
        # Of the batch that is about to begin, which will begin again: Lightning would take the epoch for done.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        if self.at_end:
            as_between_batches_(checkpoint, type(trainer.datamodule).__qualname__, trainer.num_training_batches)  # type: ignore[attr-defined]

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint[STATE]
        for state in checkpoint["callbacks"].values():
            best_is_here_(state, self.directory.resolve())

    def _is_due(self, trainer: Trainer, module: Any) -> bool:
        steps = trainer.global_step - self.saved_step
        if not steps or module.skipped_in_a_row:  # what may be bad is not to take the place of what is good
            return False
        late = self.every_seconds is not None and time.monotonic() - self.saved_at >= self.every_seconds
        return self.validated or late or (self.every_steps is not None and steps >= self.every_steps)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self.saved_step or self.at_end:
            trainer.save_checkpoint(self.directory / NEXT)
            if trainer.is_global_zero:
                shift(self.directory)
        self.validated, self.saved_step, self.saved_at = False, trainer.global_step, time.monotonic()

    def _stop_if_asked(self, trainer: Trainer) -> None:
        """All processes together: the largest number that any of them has received."""
        received = torch.tensor(self.requests.received, device=trainer.strategy.root_device)
        asked = int(trainer.strategy.reduce(received, reduce_op="max"))
        if not asked:
            return
        self.requests.stop_listening()
        if trainer.is_global_zero and asked == REQUEUE:
            print(requeue_job())
        # Of several processes the first one's exit code counts; another's would have all of them killed.
        raise Stopped(asked if trainer.is_global_zero else 0)

    def _go_on(self, trainer: Trainer) -> None:
        if self.loaded is None:
            return
        loop = trainer.fit_loop
        loop.on_iteration_done()  # else the loop of epochs takes the whole first one for a restart, and no plateau ends
        loop.epoch_loop._batches_that_stepped = trainer.global_step  # the step that is logged, which Lightning guesses
        batches = loop.epoch_loop.batch_progress.total
        batches.ready = batches.completed + 1  # this one, which had been ready before as well
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.loaded["seen"].items()})
        self._restore(trainer)

    def _restore(self, trainer: Trainer) -> None:
        if self.loaded and len(self.loaded["random"]) == trainer.world_size:
            restore_random_state(self.loaded["random"][trainer.global_rank])
        self.loaded = None


def best_is_here_(state: dict[str, Any], directory: Path) -> None:
    """Of a ModelCheckpoint's state, whose paths are absolute: a run directory may have been moved since, and a run may
    go on from another's checkpoint. Lightning would forget what the best was."""
    if "best_model_path" not in state or not state["best_model_path"] or Path(state["dirpath"]) == directory:
        return
    there, here = Path(state["best_model_path"]), directory / Path(state["best_model_path"]).name
    if there.exists() and not here.exists():
        with complete_or_absent(here) as partial:
            shutil.copy(there, partial)
    if here.exists():
        moved = {str(directory / Path(path).name): score for path, score in state["best_k_models"].items()}
        kth = str(directory / Path(state["kth_best_model_path"]).name) if state["kth_best_model_path"] else ""
        state |= {"dirpath": str(directory), "best_model_path": str(here), "best_k_models": moved}
        state["kth_best_model_path"] = kth


def state_in(checkpoint: Path) -> dict[str, Any]:
    """Of the run that wrote it: `notes` as they were given to it, and how long its `logs` were.

    Raises:
        DataError: it is of a run that kept none, as `best.ckpt` holds weights alone, or of an earlier version.
    """
    content = peek(checkpoint)
    if STATE not in content:
        raise DataError(f"{checkpoint} holds no state to go on from; give a run directory, or its last.ckpt")
    state = content[STATE]
    if state.get("version") != VERSION:
        raise DataError(
            f"{checkpoint} was written by another version of Permafrost; go on with that version, or train again in "
            "another hydra.run.dir"
        )
    return state


def interval(save_every: int | str) -> tuple[int | None, float | None]:
    """Steps and seconds, of which one is None: 100 is a hundred steps, 10min ten minutes."""
    if isinstance(save_every, int):
        return save_every, None
    number, unit = re.fullmatch(r"([\d.]+)(s|min|h)", save_every).groups()  # type: ignore[union-attr]
    return None, float(number) * SECONDS[unit]


def as_between_batches_(checkpoint: dict[str, Any], data: str, batches_per_epoch: int | float) -> None:
    """Of a checkpoint at the end of training, make one of a run that is about to begin its next batch.

    Lightning counts the epoch as done wherever training ends. Where it ended within one, by trainer.max_steps, a run
    with more steps is to go on within it; where it ended with one, a run with more epochs begins the next.
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    done = batches["current"]["completed"]
    if done >= batches_per_epoch:
        batches["current"] = dict.fromkeys(batches["current"], 0)
        checkpoint[data]["batches_done"] = 0
    else:
        for counts in (epochs["current"], epochs["total"]):
            counts["processed"] = counts["completed"] = counts["started"] - 1
        for counts in (batches["current"], batches["total"]):
            counts["ready"] = counts["completed"] + 1
        checkpoint[data]["epoch"] = epochs["current"]["completed"]
