"""What the machine is asked for, and what is chosen by it."""

import os
import subprocess
import sys

import pytest
import torch

from permafrost.model.flat_rows import onednn_has_bfloat16
from permafrost.training import hardware
from permafrost.training.hardware import loader_workers, resolve_precision, use_all_cores

PRODUCTS = """
import torch
from permafrost.training import hardware
hardware.KEPT_KERNELS = {limit}
hardware.keep_few_kernels()
for rows in (1, 2, 3, 4, 5, 6, 1):
    torch.ones(64 * rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
"""


@pytest.mark.parametrize(("limit", "compiled"), [(100, 6), (4, 7)])
def test_what_onednn_compiled_is_forgotten_over_the_limit(limit, compiled):
    own = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    environment = own | {"ONEDNN_VERBOSE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PRODUCTS.format(limit=limit)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    if "create:cache" not in said:
        pytest.skip("oneDNN does not multiply bfloat16 on this CPU")
    assert said.count("create:cache_miss") == compiled


@pytest.mark.parametrize(("speedup", "precision"), [(0.5, "32-true"), (1.9, "32-true"), (4.0, "bf16-mixed")])
def test_a_cpu_computes_in_bfloat16_where_it_multiplies_it_faster(monkeypatch, speedup, precision):
    monkeypatch.setattr(hardware, "onednn_has_bfloat16", lambda: True)
    monkeypatch.setattr(hardware, "_bf16_speedup_of_products", lambda: speedup)
    assert resolve_precision("auto", "auto") == resolve_precision("auto", "cpu") == precision


def test_where_onednn_has_no_bfloat16_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(hardware, "onednn_has_bfloat16", lambda: False)
    monkeypatch.setattr(hardware, "_bf16_speedup_of_products", lambda: pytest.fail("seconds of products"))
    assert resolve_precision("auto", "cpu") == "32-true"


@pytest.mark.parametrize(("has_bf16", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_is_asked_whether_it_has_bfloat16(monkeypatch, has_bf16, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(hardware, "_bf16_speedup_of_products", lambda: 0.5)
    assert resolve_precision("auto", "gpu") == precision
    assert resolve_precision("auto", "cpu") == "32-true"


def test_a_precision_that_was_chosen_stays():
    assert resolve_precision("16-mixed", "gpu") == "16-mixed"


@pytest.mark.skipif(not onednn_has_bfloat16(), reason="oneDNN does not multiply bfloat16 on this CPU")
def test_a_measured_speedup_leaves_the_threads_as_they_were():
    threads = torch.get_num_threads()
    assert 0.05 < hardware._bf16_speedup_of_products() < 50
    assert torch.get_num_threads() == threads


def test_there_are_as_many_threads_as_cores_that_the_process_may_use(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    use_all_cores()
    assert asked == []  # OMP_NUM_THREADS says how many: a sweep's worker has its share
    monkeypatch.delenv("OMP_NUM_THREADS")
    use_all_cores()
    assert asked == [3]


@pytest.mark.parametrize(
    ("asked", "accelerator", "gpus", "cores", "workers"),
    [
        ("auto", "cpu", 1, 16, 0),
        ("auto", "auto", 0, 16, 0),
        ("auto", "auto", 1, 16, 2),
        ("auto", "gpu", 1, 2, 1),
        ("auto", "gpu", 8, 16, 1),
        ("auto", "gpu", 8, 8, 0),
        (3, "cpu", 0, 2, 3),
        (0, "gpu", 1, 16, 0),
    ],
)
def test_batches_are_collated_by_cores_that_have_nothing_else_to_do(
    monkeypatch, asked, accelerator, gpus, cores, workers
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(hardware, "usable_cores", lambda: cores)
    assert loader_workers(asked, accelerator) == workers
