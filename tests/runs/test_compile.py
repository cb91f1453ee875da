"""`model.compile=true`: one program for batches of many shapes, which learns what the uncompiled one learns."""

import json
import shutil

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++"),
    pytest.mark.filterwarnings("ignore"),  # torch's compiler has deprecations of its own
]


def losses(run_dir) -> list[float]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_batches_of_many_shapes_share_their_programs(run_tiny, monkeypatch):
    from permafrost.training.module import FineTuning

    shapes, step = set(), FineTuning.training_step

    def seen(self, batch, batch_idx):
        shapes.add(tuple(batch.input_ids.shape))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FineTuning, "training_step", seen)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    options = ["freezing.blocks=0", "model.dropout=0", "trainer.max_epochs=4", "trainer.log_every_n_steps=1"]
    _, compiled = run_tiny(*options, "model.compile=true", name="compiled")
    programs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert len(shapes) >= 6
    assert 1 <= programs <= 3  # the first shape's, and then one of any shape
    _, plain = run_tiny(*options, name="plain")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-3)
