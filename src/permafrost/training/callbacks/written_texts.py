"""Lets the model write: a fixed sample of the validation rows after each validation, and every test row."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from permafrost.model.decoding import drawing_from
from permafrost.tasks.base import Encoding, Writes, WritesAnswers, in_part, question_of
from permafrost.tasks.writing import write
from permafrost.training.processes import gathered

Row = Mapping[str, Any]
SHOWN = 80  # characters


class WrittenTexts(Callback):
    """Logs the task's scores of what was written. `test` keeps the answers to the test rows, in their order."""

    def __init__(self, part: str, task: Writes, encoding: Encoding, *, validation: Sequence[Row], test: Sequence[Row]):
        self.part, self.task, self.encoding = part, task, encoding
        self.rows = {"validation": list(validation), "test": list(test)}
        self.written: dict[str, list[str]] = {}
        self.console = Console(highlight=False, soft_wrap=True)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write_and_score(trainer, module, "validation")

    def on_test_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._write_and_score(trainer, module, "test")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """A sample for the reader: the first row, and what was written for it."""
        if trainer.state.fn == TrainerFn.FITTING and trainer.is_global_zero and self.rows["validation"]:
            asked, written = question_of(self.task.asked(self.rows["validation"][0])), self.written["validation"][0]
            self.console.print(f"  {asked[-SHOWN:]!r} -> {written[:SHOWN]!r}", markup=False)

    def _write_and_score(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        rows = self.rows[stage]
        if not rows:
            return
        mine = rows[trainer.global_rank :: trainer.world_size]
        backbone = module.parts[self.part].model.transformer  # type: ignore[index, union-attr]
        with drawing_from(trainer.global_rank):  # as `permafrost evaluate` does: the same figure again
            written = write(self.task, backbone, mine, self.encoding) if mine else []
        self.written[stage] = _in_turns(written, len(rows), trainer.world_size)
        scores = self.task.score(self.written[stage], rows) if isinstance(self.task, WritesAnswers) else {}
        logged = {f"{stage}/{in_part(self.part, name)}": value for name, value in scores.items()}
        module.log_dict(logged, rank_zero_only=False)


def _in_turns(mine: list[str], count: int, world_size: int) -> list[str]:
    """All processes' texts, each of which had every `world_size`-th row."""
    of_process = gathered(mine, world_size)
    return [of_process[row % world_size][row // world_size] for row in range(count)]
