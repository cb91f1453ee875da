"""What runs on a GPU alone: make test-gpu. Packed rows, forward and backward, and a run with the store and without."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from permafrost.model import backbone as backbone_module
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead
from permafrost.model.packing import pack_where_it_pays
from tests.runs.conftest import command, write_rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
LENGTHS = torch.tensor([200, 31, 1, 64, 130])
IDS = torch.randint(0, 300, (5, 200), generator=torch.Generator().manual_seed(0))


def logits_and_gradients(model: GPT2WithHead) -> list[torch.Tensor]:
    logits = model(IDS.cuda(), LENGTHS.cuda())
    return [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_packed_rows_give_the_logits_and_gradients_of_padded_ones(monkeypatch, pooling):
    """To the rounding of float32 sums in another order; gradients are of size 1 to 100."""
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    config = GPT2Config(n_layer=3, n_embd=128, n_head=4, vocab_size=300, bos_token_id=0, eos_token_id=0)
    head = PooledHead(128, 3, pooling=pooling, init="normal")
    model = GPT2WithHead(GPT2Model(config), head, Freezing(embeddings=False, blocks=0)).cuda().eval()
    hidden = torch.zeros(5, 200, 128, device="cuda")
    assert pack_where_it_pays(LENGTHS.cuda(), hidden, attention_dropout=False) is not None
    packed = logits_and_gradients(model)
    monkeypatch.setattr(backbone_module, "pack_where_it_pays", lambda *_, **__: None)
    for ours, theirs in zip(packed, logits_and_gradients(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_run_with_the_store_is_the_run_without_it(tmp_path):
    write_rows(tmp_path, {"train": 200, "validation": 40, "test": 40})
    results = {}
    for store in ("on", "off"):
        files = [f"data.{name}={tmp_path}/{name}.csv" for name in ("train", "validation", "test")]
        own = [f"store={store}", f"store.dir={tmp_path}/activations", "store.dtype=float32", "logger=none"]
        own += ["trainer.precision=32-true", "trainer.accelerator=gpu", "trainer.max_epochs=2", "freezing.blocks=4"]
        own += [f"data.cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/{store}", "yardsticks=false"]
        done = command("data=files", *files, *own, cwd=Path(tmp_path))
        assert done.returncode == 0, done.stderr
        results[store] = json.loads((tmp_path / store / "result.json").read_text())
    assert results["on"]["tokens"]["trunk"] > 0 == results["off"]["tokens"]["trunk"]
    assert results["on"]["test"]["loss"] == pytest.approx(results["off"]["test"]["loss"], abs=1e-3)
