"""What is computed of a batch, and how much of it is no token."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from permafrost.model import flat_rows
from permafrost.training.callbacks.throughput import Throughput

TOKENS, POSITIONS, FILLED_UP = 60, 70, 128  # 7 rows of 10 at most; the next multiple of 64


def padding_share(context, *, compiles: bool) -> float:
    """As it is logged after two batches."""
    logged, callback = {}, Throughput()
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(forward_context=lambda: context), state=SimpleNamespace(fn=TrainerFn.FITTING)
    )
    module = SimpleNamespace(compiles=compiles, log=lambda name, value, **_: logged.setdefault(name, value))
    batch = SimpleNamespace(input_ids=torch.zeros(7, 10), lengths=torch.tensor([10, 10, 10, 10, 10, 5, 5]))
    for index in range(2):
        callback.on_train_batch_start(trainer, module, batch, index)
        callback.on_train_batch_end(trainer, module, None, batch, index)
    callback.on_validation_epoch_start(trainer, module)
    return logged["train/padding_share"]


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("context", "compiles", "computed"),
    [(nullcontext, False, POSITIONS), (bfloat16, False, FILLED_UP), (bfloat16, True, POSITIONS)],
)
def test_what_fills_a_batch_up_counts_as_padding(monkeypatch, context, compiles, computed):
    monkeypatch.setattr(flat_rows, "onednn_has_bfloat16", lambda: True)
    assert padding_share(context(), compiles=compiles) == pytest.approx(1 - TOKENS / computed)
