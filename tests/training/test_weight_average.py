"""The average of the latest steps' weights: against its sum written out, and in the run that keeps it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from permafrost.training.callbacks.instability import restore_weights_
from permafrost.training.callbacks.weight_average import WeightAverage
from permafrost.training.checkpoints import put_in_averaged_


class Trainer:
    """What the callback asks of a trainer."""

    global_step = 0
    state = type("State", (), {"fn": "fit"})()


def trained(steps: int, decay: float) -> tuple[WeightAverage, nn.Linear, list[torch.Tensor]]:
    torch.manual_seed(0)
    module, callback, trainer = nn.Linear(3, 2), WeightAverage(decay), Trainer()
    module.bias.requires_grad_(False)
    seen = [module.weight.detach().clone()]
    callback.on_train_start(trainer, module)
    for _ in range(steps):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 3))
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module)
        callback.on_train_batch_end(trainer, module)  # a batch whose gradients wait for the step's others
        seen.append(module.weight.detach().clone())
    return callback, module, seen


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_its_sum_written_out(decay):
    callback, _, seen = trained(20, decay)
    expected = seen[0].double()
    for step, weight in enumerate(seen[1:], start=1):
        share = min(decay, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * weight.double()
    torch.testing.assert_close(callback.average["weight"].double(), expected, rtol=1e-5, atol=1e-5)
    assert list(callback.average) == ["weight"]  # the frozen one needs none


def test_weights_of_sixteen_bits_are_averaged_in_float32():
    module, callback, trainer = nn.Linear(3, 2).bfloat16(), WeightAverage(0.999), Trainer()
    callback.on_train_start(trainer, module)
    trainer.global_step = 10_000
    with torch.no_grad():
        module.weight.add_(1.0)
    before = callback.average["weight"].clone()
    callback.on_train_batch_end(trainer, module)
    # a thousandth of what is missing, which bfloat16 would round away
    torch.testing.assert_close(callback.average["weight"], before.lerp(module.weight.float(), 0.001))


def test_training_goes_on_with_the_weights_as_they_were():
    callback, module, seen = trained(5, 0.9)
    trainer = Trainer()
    callback.on_validation_start(trainer, module)
    assert torch.equal(module.weight, callback.average["weight"])
    callback.on_validation_end(trainer, module)
    assert torch.equal(module.weight, seen[-1])


def test_a_run_without_a_step_to_take_keeps_its_weights():
    module, callback = nn.Linear(3, 2), WeightAverage()
    before = module.weight.detach().clone()
    callback.on_fit_end(Trainer(), module)
    assert torch.equal(module.weight, before)


def test_the_average_goes_back_with_the_weights():
    """Of a run whose steps had no finite gradient."""
    callback, module, _ = trained(5, 0.9)
    kept = {"WeightAverage": copy.deepcopy(callback.state_dict())}
    callback.average["weight"].fill_(float("nan"))
    module.trained_tokens, module.on_load_checkpoint = 0, lambda checkpoint: None
    strategy = SimpleNamespace(load_model_state_dict=lambda c: None, load_optimizer_state_dict=lambda c: None)
    restore_weights_(SimpleNamespace(optimizers=[], strategy=strategy), module, {"callbacks": kept})
    assert torch.equal(callback.average["weight"], kept["WeightAverage"]["average"]["weight"])


def test_a_weight_of_two_names_is_averaged_under_both():
    """As of several tasks over one branch."""
    callback, module, _ = trained(3, 0.9)
    both = nn.ModuleList([module, module])
    checkpoint = {"state_dict": both.state_dict()}
    put_in_averaged_(checkpoint, both, {"0.weight": callback.average["weight"]})
    for name in ("0.weight", "1.weight"):
        assert torch.equal(checkpoint["state_dict"][name], callback.average["weight"])
    assert torch.equal(checkpoint["state_dict"]["1.bias"], module.bias)


def test_a_decay_that_averages_nothing_is_refused():
    with pytest.raises(ValueError, match=r"decay=1: between 0 and 1"):
        WeightAverage(1)
