"""Steps that would ruin the weights are left out, their rows named; a run that goes astray ends early, with advice."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file

from permafrost.errors import TrainingError
from permafrost.training.callbacks import instability
from permafrost.training.module import FineTuning

pytestmark = pytest.mark.usefixtures("no_report")

SHORT = ["trainer.max_epochs=3", "callbacks.early_stopping=null", "store=off"]


@pytest.fixture
def spoil(monkeypatch):
    """Multiply the losses of these batches, counted over the run from 1."""

    def arrange(batches: range, factor: float) -> None:
        step = FineTuning.training_step

        def spoiled(self, batch, batch_idx):
            loss = step(self, batch, batch_idx)
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx + 1
            return loss * factor if number in batches else loss

        monkeypatch.setattr(FineTuning, "training_step", spoiled)

    return arrange


@pytest.mark.parametrize("factor", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)])
def test_19_a_step_without_a_finite_gradient_is_left_out(run_tiny, spoil, capsys, factor):
    spoil(range(4, 5), factor)
    result, run_dir = run_tiny(*SHORT)
    (told,) = re.findall(
        r"step 4: loss \w+, gradient \w+: left out, 1 in a row; its rows: (.*)", capsys.readouterr().out
    )
    rows = [re.fullmatch(r".*train\.csv:(\d+)", row) for row in told.split(" and ")[0].split(", ")]
    assert all(2 <= int(row[1]) <= 41 for row in rows)
    assert result["status"] == "done"
    assert all(weight.isfinite().all() for weight in load_file(run_dir / "model" / "model.safetensors").values())


@pytest.mark.slow
def test_19_what_follows_is_as_if_the_step_had_had_no_gradient(run_tiny, spoil, monkeypatch):
    """Nothing of it is left in the optimizer: the weights are those of a run without a loss there."""
    options = [*SHORT, "optimizer=sgd", "+optimizer.momentum=0.0", "optimizer.weight_decay=0.0"]
    runs = []
    for name, factor in (("left out", float("nan")), ("no gradient", 0.0)):
        with pytest.MonkeyPatch.context():
            spoil(range(4, 5), factor)
            runs.append(load_file(run_tiny(*options, name=name)[1] / "model" / "model.safetensors"))
        monkeypatch.undo()
    assert all(torch.equal(weight, runs[1][name]) for name, weight in runs[0].items())


def test_after_several_the_last_checkpoints_weights_come_back(run_tiny, spoil, capsys, monkeypatch):
    seen, restore = [], instability.restore_weights_

    def watched(trainer, module, checkpoint):
        before = {name: weight.clone() for name, weight in module.state_dict().items()}
        restore(trainer, module, checkpoint)
        after = {name: weight.clone() for name, weight in module.state_dict().items()}
        moments = trainer.optimizers[0].state_dict()["state"]
        seen.append((before, after, *copy.deepcopy((moments, checkpoint))))  # training goes on with what was loaded

    monkeypatch.setattr(instability, "restore_weights_", watched)
    spoil(range(8, 10), float("nan"))
    result, run_dir = run_tiny(*SHORT, "callbacks.instability.max_skips=2")
    assert f"back to the weights of {run_dir}/checkpoints/last.ckpt" in capsys.readouterr().out
    assert result["status"] == "done"
    ((before, after, moments, kept),) = seen
    assert any(not torch.equal(before[name], weight) for name, weight in kept["state_dict"].items())
    assert all(torch.equal(after[name], weight) for name, weight in kept["state_dict"].items())
    for key, of_one in kept["optimizer_states"][0]["state"].items():
        assert all(torch.equal(moments[key][name], value) for name, value in of_one.items())


@pytest.mark.parametrize("batches", [range(1, 9), range(8, 99)], ids=["before any checkpoint", "again and again"])
def test_a_run_that_does_not_recover_ends_with_5(run_tiny, spoil, batches):
    spoil(batches, float("nan"))
    with pytest.raises(
        TrainingError, match=r"the run diverged: 2 steps in a row had no finite gradient.*optimizer\.lr"
    ):
        run_tiny(*SHORT, "callbacks.instability.max_skips=2")
    assert TrainingError.exit_code == 5


@pytest.mark.slow
def test_20_a_spike_is_left_out(run_tiny, spoil, capsys):
    options = ["trainer.max_epochs=10", "callbacks.early_stopping=null", "callbacks.instability.spike_z=6"]
    options += ["optimizer.lr=1e-4", "store=off"]
    spoil(range(40, 41), 100.0)
    result, _ = run_tiny(*options)
    assert "40" in re.findall(r"step (\d+): loss .*: left out", capsys.readouterr().out)
    assert result["test"]["loss"] < 1


def test_21_a_far_too_high_rate_ends_early(run_tiny):
    with pytest.raises(
        TrainingError, match=r"the run diverged: a train loss of .* before the first; lower optimizer\.lr"
    ):
        run_tiny("optimizer.lr=10", "trainer.max_epochs=40", "callbacks.early_stopping=null", "store=off")
