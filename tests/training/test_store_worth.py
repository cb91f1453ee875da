"""Whether the store pays: what is measured, and how it is weighed."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from permafrost.data.tokens.batching import TokenBatching
from permafrost.model import activation_store
from permafrost.model.activation_store import ActivationStore
from permafrost.training import store_worth
from permafrost.training.store_worth import (
    SWEEP_TRIALS,
    Rates,
    Reads,
    is_worth_it,
    measure_computing,
    measure_store,
    sampled_batches,
    timed,
    weigh,
)
from permafrost.training.trunk_pass import FrozenPart, StoreOptions, Wanted, open_stores, what_to_store
from tests.frozen import SPLITS, TOKENS, make_part, make_split

READS = Reads(of_split={"train": 5, "validation": 6, "test": 1}, batching=TokenBatching(max_tokens=160))
ONCE = replace(READS, of_split=dict.fromkeys(TOKENS, 1))
CHEAP_READS = Rates(compute=0.1, write=0.05, read=0.01)  # seconds per token
DEAR_READS = Rates(compute=0.1, write=0.05, read=0.2)


def lengths_only() -> dict[str, SimpleNamespace]:
    return {name: SimpleNamespace(lengths=np.array([tokens - 1, 1])) for name, tokens in TOKENS.items()}


@pytest.fixture
def wanted(tiny_backbone, tmp_path) -> Wanted:
    """64 training rows of ten tokens: four batches, of which two are sampled."""
    options = StoreOptions(mode="auto", directory=tmp_path, dtype="float16", max_gb=1.0)
    splits = SPLITS | {"train": make_split(5, [10] * 64)}
    return what_to_store(make_part(tiny_backbone), splits, options, tokenizer="abc")


def sampled(wanted: Wanted) -> list[np.ndarray]:
    return sampled_batches(wanted.splits["train"].lengths, READS.batching)


# 100 x 5 + 10 x 6 + 10 x 1 = 570 tokens are read, 120 are built at 0.1 + 0.05 s each.
@pytest.mark.parametrize(
    ("rates", "missing", "reads", "pays", "totals"),
    [
        (CHEAP_READS, list(TOKENS), READS, True, (18 + 5.7, 57)),
        (DEAR_READS, list(TOKENS), READS, False, (18 + 114, 57)),
        # read once, 120 tokens in all: built and never read again
        (CHEAP_READS, list(TOKENS), ONCE, False, (18 + 1.2, 12)),
        (CHEAP_READS, [], ONCE, True, (1.2, 12)),
        (CHEAP_READS, ["test"], ONCE, True, (1.5 + 1.2, 12)),
        # a model that computes as fast as the disk reads has nothing to gain, whatever is there already
        (Rates(compute=0.1, write=0.0, read=0.1), [], READS, False, (57, 57)),
        # of a sweep one run builds and all read
        (CHEAP_READS, list(TOKENS), replace(ONCE, runs=10), True, (18 + 12, 120)),
    ],
)
def test_it_pays_where_building_and_reading_take_less_than_computing(rates, missing, reads, pays, totals):
    decided, why = weigh(rates, lengths_only(), reads, missing)
    assert decided is pays
    assert f"about {totals[0]:.0f} s with it and {totals[1]:.0f} s without" in why
    assert f"{rates.compute * 1e6:.1f} us to compute, {rates.read * 1e6:.1f} us to read" in why
    assert ("if the sweep has 10 trials" in why) is (reads.runs == 10)


def test_a_sweep_of_runs_that_read_little_builds_nothing():
    """Trials of some steps each, which together read a share of what would be built."""
    little = replace(READS, of_split={"train": 0.02, "validation": 0, "test": 0}, runs=SWEEP_TRIALS)
    assert weigh(CHEAP_READS, lengths_only(), little, list(TOKENS))[0] is False


def test_what_takes_less_than_a_second_is_not_stored(wanted, monkeypatch):
    """Chance would decide, and two runs of one command would differ in their last bits. Nor is anything written."""
    tokens = READS.tokens(wanted.splits)
    assert tokens == 640 * 5 + 10 * 6 + 10
    monkeypatch.setattr(store_worth, "measure_computing", lambda *_: (0.99 / tokens, []))
    monkeypatch.setattr(store_worth, "measure_store", lambda *_: pytest.fail("it wrote"))
    pays, why = is_worth_it(wanted, READS, None, list(TOKENS))
    assert not pays
    assert why.endswith("us to compute; less than a second in all")
    monkeypatch.setattr(store_worth, "measure_computing", lambda *_: (1.01 / tokens, []))
    monkeypatch.setattr(store_worth, "measure_store", lambda *_: (0.0, 0.0))
    assert is_worth_it(wanted, READS, None, list(TOKENS))[0]


def test_computing_is_measured_in_the_batches_of_training(wanted, monkeypatch):
    rows, compute = [], FrozenPart.__call__
    monkeypatch.setattr(FrozenPart, "__call__", lambda part, ids: rows.append(len(ids)) or compute(part, ids))
    seconds, states = measure_computing(wanted.part, wanted.splits["train"], sampled(wanted))
    assert rows == [16, 16, 16]  # the first is not counted
    assert [of_batch.shape for of_batch in states] == [(16, 10, 32)] * 2
    assert 0 < seconds < 1


def test_a_measurement_gives_seconds_and_leaves_nothing_behind(wanted, tmp_path):
    _, states = measure_computing(wanted.part, wanted.splits["train"], sampled(wanted))
    write, read = measure_store(wanted, sampled(wanted), states)
    assert 0 < write < 1
    assert 0 < read < 1
    assert list(tmp_path.iterdir()) == []


def test_putting_states_into_the_stored_type_is_part_of_writing(wanted, monkeypatch):
    as_stored = activation_store.as_stored

    def slowly(*arguments):
        time.sleep(0.2)
        return as_stored(*arguments)

    monkeypatch.setattr(activation_store, "as_stored", slowly)
    compute, states = measure_computing(wanted.part, wanted.splits["train"], sampled(wanted))
    write, _ = measure_store(wanted, sampled(wanted), states)
    assert compute < 0.2 / 160 < write


def test_reading_is_measured_as_training_reads_rows_in_any_order(wanted, monkeypatch):
    read, padded = [], ActivationStore.padded
    monkeypatch.setattr(ActivationStore, "padded", lambda store, rows: read.append(rows) or padded(store, rows))
    _, states = measure_computing(wanted.part, wanted.splits["train"], sampled(wanted))
    measure_store(wanted, sampled(wanted), states)
    assert [len(rows) for rows in read] == [16, 16]
    assert sorted(np.concatenate(read).tolist()) == list(range(32))
    assert (np.diff(np.concatenate(read)) < 0).any()


def test_where_all_is_stored_that_is_read_and_nothing_written(wanted, monkeypatch):
    on = replace(wanted, options=replace(wanted.options, mode="on"))
    (stores,) = open_stores({"": on}, reads={}, say=print).values()
    monkeypatch.setattr(store_worth, "WORTH_SECONDS", 0)
    monkeypatch.setattr(store_worth, "write_entry", lambda *_: pytest.fail("it wrote"))
    _, why = is_worth_it(wanted, READS, stores.by_split["train"], [])
    assert "us to read" in why


def test_a_gpu_is_waited_for(monkeypatch):
    """Its work goes on when the call is over."""
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append("wait"))
    timed(lambda: order.append("work"), torch.device("cuda"))
    assert order == ["wait", "work", "wait"]
