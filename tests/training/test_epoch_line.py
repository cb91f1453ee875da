"""The mean loss of an epoch's line, over a stop and on every process."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from permafrost.training.callbacks.epoch_line import EpochLine


def a_trainer(*, first: bool = True):
    metrics = {"validation/loss": torch.tensor(1.0)}
    options = {"state": SimpleNamespace(fn=TrainerFn.FITTING), "is_global_zero": first, "callback_metrics": metrics}
    return SimpleNamespace(**options, current_epoch=0, max_epochs=1, global_step=4)


def after(line: EpochLine, trainer, losses: list[float]) -> EpochLine:
    for loss in losses:
        trainer.callback_metrics["train/loss"] = torch.tensor(loss)
        line.on_train_batch_end(trainer, None, None, None, 0)
    return line


def test_a_stop_within_an_epoch_loses_no_loss(capsys):
    trainer = a_trainer()
    first = after(EpochLine("validation/loss"), trainer, [1.0, 2.0])
    second = EpochLine("validation/loss")
    second.load_state_dict(first.state_dict())
    after(second, trainer, [4.0, 5.0]).on_validation_end(trainer, None)
    assert "train loss 3.0000" in capsys.readouterr().out
    after(second, trainer, [7.0]).on_validation_end(trainer, None)
    assert "train loss 7.0000" in capsys.readouterr().out


@pytest.mark.parametrize("first", [True, False])
def test_what_is_kept_does_not_grow(first, capsys):
    trainer = a_trainer(first=first)
    line = after(EpochLine("validation/loss"), trainer, [1.0] * 50)
    assert line.state_dict().keys() == {"loss_sum", "num_losses"}
    line.on_validation_end(trainer, None)
    assert line.state_dict()["num_losses"] == 0
    assert ("train loss" in capsys.readouterr().out) is first
