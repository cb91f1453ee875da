"""Sizes, intervals and frontiers, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from permafrost.compression import measure
from permafrost.compression.measure import bootstrap, frontier, latency, resident_mb, size_mb


def test_the_size_is_that_of_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1_500_000)
    (tmp_path / "config.json").write_bytes(b"0" * 1_000_000)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"0" * 500_000)
    assert size_mb(tmp_path) == 2.0


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap(lambda rows: float(values[rows].mean()), 400, resamples=2000)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.04)


def test_the_interval_of_what_never_varies_is_a_point():
    assert bootstrap(lambda rows: 1.0, 10) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("costs", "qualities", "expected"),
    [
        ([1, 2, 3], [0.5, 0.7, 0.6], [True, True, False]),
        ([1, 1], [0.5, 0.6], [False, True]),
        ([2, 2], [0.5, 0.5], [True, True]),
        ([], [], []),
    ],
)
def test_the_frontier_is_what_no_other_beats(costs, qualities, expected):
    assert frontier(costs, qualities) == expected


def test_latency_is_the_middle_and_nearly_the_longest(monkeypatch):
    spans = [0.001] * 9 + [0.020]
    ticks = iter([tick for span in spans for tick in (0.0, span)])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    found = latency(lambda: None, repeats=10)
    assert found.p50_ms == pytest.approx(1)
    assert found.p95_ms == pytest.approx(float(np.quantile([1] * 9 + [20], 0.95)))


def test_resident_memory_grows_with_what_is_held():
    before = resident_mb()
    held = np.ones(20_000_000)
    assert 140 < resident_mb() - before < 180
    assert held.sum() > 0
