"""Schedules by hand: the learning rate is 10 and the shares are chosen so that the answers are obvious."""

from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from permafrost.training import schedulers

CLOSE = 1e-9  # float64 sums


def sgd(lr: float = 10.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(name: str, total_steps: int, **options) -> list[float]:
    """The rate of each step, and the one left after the last."""
    optimizer = sgd()
    scheduler = getattr(schedulers, name)(optimizer, total_steps, **options)
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(total_steps):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


TABLE = [
    ("constant", 3, {"warmup": 0}, [10, 10, 10, 10]),
    ("linear", 4, {"warmup": 0, "final": 0.6}, [10, 9, 8, 7, 6]),
    ("linear", 4, {"warmup": 0, "final": 0.0}, [10, 7.5, 5, 2.5, 0]),
    ("exponential", 2, {"warmup": 0, "final": 0.01}, [10, 1, 0.1]),
    ("cosine", 2, {"warmup": 0, "final": 0.4}, [10, 7, 4]),
    ("cosine", 3, {"warmup": 0, "final": 0.0}, [10, 7.5, 2.5, 0]),
    ("cosine_restarts", 4, {"warmup": 0, "final": 0.4, "cycles": 2}, [10, 7, 10, 7, 4]),
    ("polynomial", 2, {"warmup": 0, "final": 0.4, "power": 2.0}, [10, 5.5, 4]),
    ("wsd", 5, {"warmup": 0, "final": 0.0, "decay": 0.4}, [10, 10, 10, 10, 5, 0]),
    ("wsd", 4, {"warmup": 0, "final": 0.2, "decay": 1.0}, [10, 8, 6, 4, 2]),
    ("one_cycle", 6, {"rise": 0.5, "start": 0.2, "final": 0.0}, [2, 4, 8, 10, 7.5, 2.5, 0]),
    # Three steps of warm-up rise by 10 / (3 + 1)
    ("constant", 5, {"warmup": 3}, [2.5, 5, 7.5, 10, 10, 10]),
    ("linear", 7, {"warmup": 3, "final": 0.2}, [2.5, 5, 7.5, 10, 8, 6, 4, 2]),
    ("cosine", 5, {"warmup": 3, "final": 0.4}, [2.5, 5, 7.5, 10, 7, 4]),
    ("exponential", 5, {"warmup": 3, "final": 0.01}, [2.5, 5, 7.5, 10, 1, 0.1]),
    ("polynomial", 5, {"warmup": 3, "final": 0.4, "power": 2.0}, [2.5, 5, 7.5, 10, 5.5, 4]),
    ("wsd", 8, {"warmup": 3, "final": 0.0, "decay": 0.4}, [2.5, 5, 7.5, 10, 10, 10, 10, 5, 0]),
    ("cosine_restarts", 7, {"warmup": 3, "final": 0.4, "cycles": 2}, [2.5, 5, 7.5, 10, 7, 10, 7, 4]),
]


@pytest.mark.parametrize(("name", "total_steps", "options", "expected"), TABLE)
def test_rates_by_hand(name, total_steps, options, expected):
    assert rates(name, total_steps, **options) == pytest.approx(expected, abs=CLOSE)


def test_every_schedule_has_a_row_by_hand():
    made = {name for name, value in vars(schedulers).items() if callable(value) and name.islower() and name[0] != "_"}
    assert {row[0] for row in TABLE} | {"plateau", "factor", "warmup_steps"} == made


@pytest.mark.parametrize(
    ("warmup", "total_steps", "expected"),
    [(0, 50, 0), (10, 50, 10), (1, 50, 1), (0.1, 50, 5), (1.0, 50, 50), (0.0, 50, 0), (50, 50, 50), (0.25, 10, 2)],
)
def test_warmup_is_a_count_or_a_share(warmup, total_steps, expected):
    assert schedulers.warmup_steps(warmup, total_steps) == expected


def test_a_share_and_its_count_are_one_schedule():
    assert rates("linear", 10, warmup=0.3, final=0.0) == rates("linear", 10, warmup=3, final=0.0)


@pytest.mark.parametrize("warmup", [11, -1, 1.5, -0.2])
@pytest.mark.parametrize(
    ("name", "options"), [("constant", {}), ("plateau", {"reduce_by": 0.5, "patience": 0, "mode": "min"})]
)
def test_a_warmup_longer_than_the_run_is_an_error(name, options, warmup):
    with pytest.raises(ValueError, match=rf"scheduler\.warmup={warmup} .* the run has 10"):
        getattr(schedulers, name)(sgd(), 10, warmup=warmup, **options)


def test_a_run_may_be_all_warmup():
    assert rates("linear", 3, warmup=3, final=0.0)[:3] == pytest.approx([2.5, 5, 7.5], abs=CLOSE)


def test_cosine_is_torchs():
    optimizer = sgd()
    reference, expected = CosineAnnealingLR(optimizer, T_max=20, eta_min=1.0), [10.0]
    for _ in range(20):
        optimizer.step()
        reference.step()
        expected.append(optimizer.param_groups[0]["lr"])
    assert rates("cosine", 20, warmup=0, final=0.1) == pytest.approx(expected, abs=CLOSE)


def test_cosine_of_one_cycle_is_cosine():
    once = rates("cosine_restarts", 12, warmup=0, final=0.1, cycles=1)
    assert once == pytest.approx(rates("cosine", 12, warmup=0, final=0.1), abs=CLOSE)


@pytest.mark.parametrize("cycles", [3, 7, 22, 49])  # k / 22 * 22 and 1 / 49 * 49 are not whole numbers in float64
def test_every_restart_is_at_the_full_rate(cycles):
    found = rates("cosine_restarts", cycles * 2, warmup=0, final=0.0, cycles=cycles)
    assert found[:-1:2] == pytest.approx([10.0] * cycles, abs=CLOSE)


def test_one_cycle_has_its_peak_where_the_rise_ends():
    found = rates("one_cycle", 100, rise=0.3, start=0.04, final=0.0)
    assert found.index(max(found)) == 30
    assert found[0] == pytest.approx(0.4, abs=CLOSE)
    assert found[30] == pytest.approx(10, abs=CLOSE)
    assert found[:31] == sorted(found[:31])
    assert found[30:] == sorted(found[30:], reverse=True)


def test_wsd_is_flat_and_then_falls():
    found = rates("wsd", 100, warmup=10, final=0.0, decay=0.5)
    assert found[10:56] == pytest.approx([10] * 46, abs=CLOSE)
    assert all(later < earlier for earlier, later in pairwise(found[55:]))


@pytest.mark.parametrize(
    ("name", "options"), [("one_cycle", {"rise": 0.0, "start": 0.5}), ("wsd", {"warmup": 0, "decay": 1.0})]
)
def test_a_schedule_may_be_all_fall(name, options):
    found = rates(name, 4, final=0.0, **options)
    assert found[0] == 10
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [("one_cycle", {"rise": 1.0, "start": 0.5, "final": 0.0}), ("wsd", {"warmup": 0, "final": 0.0, "decay": 0.0})],
)
def test_a_share_that_leaves_no_steps_to_fall_is_an_error(name, options):
    with pytest.raises(ValueError):
        rates(name, 4, **options)


def run_plateau(metrics: list[float], mode: str = "min", patience: int = 1, warmup: int = 0) -> list[float]:
    """The rate after each validation; two steps before each."""
    optimizer = sgd()
    rise, cut = schedulers.plateau(optimizer, 100, warmup=warmup, reduce_by=0.5, patience=patience, mode=mode)
    seen = []
    for metric in metrics:
        for _ in range(2):
            optimizer.step()
            rise.step()
        cut.step(metric)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


@pytest.mark.parametrize(
    ("metrics", "mode", "patience", "expected"),
    [
        ([5, 4, 3, 2], "min", 1, [10, 10, 10, 10]),
        ([5, 5, 5, 5, 5], "min", 1, [10, 10, 5, 5, 2.5]),
        ([5, 5, 5], "min", 0, [10, 5, 2.5]),
        ([5, 6, 4, 6, 6], "min", 1, [10, 10, 10, 10, 5]),
        ([1, 2, 3, 3, 3], "max", 1, [10, 10, 10, 10, 5]),
    ],
)
def test_plateau_cuts_after_patience(metrics, mode, patience, expected):
    assert run_plateau(metrics, mode, patience) == pytest.approx(expected, abs=CLOSE)


def test_plateau_keeps_its_cut_through_and_after_the_warmup():
    # Warm-up of 3 steps: factors 1/4, 2/4, 3/4, 1. A cut at the second validation (4 steps in) halves what follows.
    assert run_plateau([5, 5, 4, 3], patience=0, warmup=3) == pytest.approx([7.5, 5, 5, 5], abs=CLOSE)
    # A cut in mid-warm-up, after 4 of 7 steps, where the factor is 5/8.
    assert run_plateau([5, 5, 4, 3], patience=0, warmup=7) == pytest.approx([3.75, 3.125, 4.375, 5], abs=CLOSE)


def test_plateau_warms_up_as_the_others_do():
    optimizer = sgd()
    rise, _ = schedulers.plateau(optimizer, 5, warmup=3, reduce_by=0.5, patience=1, mode="min")
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(5):
        optimizer.step()
        rise.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx(rates("constant", 5, warmup=3), abs=CLOSE)


def test_each_group_keeps_its_own_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (10.0, 1.0)]
    optimizer = torch.optim.SGD(groups, lr=5.0)
    scheduler = schedulers.linear(optimizer, 2, warmup=0, final=0.0)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5.0, 0.5], abs=CLOSE)
