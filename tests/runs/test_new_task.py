"""A task of one's own is one module and one YAML file, as the README says."""

import json

import pytest

MODULE = '''
"""How many words a text has."""

import numpy as np
from torch.nn import functional
from torchmetrics import MeanAbsoluteError, MetricCollection

from permafrost.model.heads import PooledHead
from permafrost.tasks.base import encode_texts, stacked, text_rows, tokenized_split


class Counting:
    name = "counting"
    roles = ("text",)
    metrics_logged = {"loss": "min", "mae": "min"}

    @classmethod
    def from_rows(cls, splits, options):
        return cls()

    @classmethod
    def from_description(cls, description):
        return cls()

    def encode(self, slices, encoding):
        for rows in slices:
            ids, unread, repeated = encode_texts(rows, encoding)
            counts = np.array([len(text.split()) for text in rows["text"].to_pylist()], np.float32)
            yield tokenized_split(ids, np.ones(len(ids)), counts, unread=unread, repeated=repeated)

    def build_head(self, backbone):
        return PooledHead(backbone.config.n_embd, 1, pooling="last", init="xavier")

    def outputs(self, model, batch):
        return model(batch.input_ids, batch.lengths, batch.trunk_states)

    def loss_sum(self, model, batch, loss):
        outputs = self.outputs(model, batch)
        return functional.l1_loss(outputs[:, 0], batch.labels, reduction="sum"), outputs

    def build_metrics(self, stage):
        return MetricCollection({"mae": MeanAbsoluteError()})

    def update_metrics(self, metrics, outputs, batch):
        metrics.update(outputs[:, 0], batch.labels)

    def metrics_of_loss(self, loss, num_targets, stage):
        return {}

    def by_row(self, outputs, batch):
        return list(outputs)

    def answers(self, outputs, rows):
        return [{"value": value} for value in stacked(outputs)[:, 0].tolist()]

    def rows_of(self, texts):
        return text_rows(texts)

    def describe(self):
        return {"task": self.name, "kind": "counting.Counting"}
'''

YAML = """# python train.py task=counting
defaults: [defaults]
name: counting
kind: counting.Counting
monitor: mae
"""


@pytest.fixture
def counting(tmp_path, monkeypatch) -> str:
    """As if both lay in the project; the override that finds the YAML file."""
    import permafrost.tasks

    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "counting.py").write_text(MODULE)
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "counting.yaml").write_text(YAML)
    monkeypatch.setattr(permafrost.tasks, "__path__", [*permafrost.tasks.__path__, str(tmp_path / "tasks")])
    return f"hydra.searchpath=[file://{tmp_path}/conf]"


def test_it_trains_answers_and_exports(run_tiny, counting):
    from permafrost.deployment.predictor import Predictor

    result, run_dir = run_tiny(
        counting, "task=counting", "optimizer.lr=1e-2", "trainer.max_epochs=8", "freezing.blocks=0"
    )
    assert result["task"] == "counting"
    assert result["test"]["mae"] == pytest.approx(result["test"]["loss"], rel=1e-5)
    assert result["test"]["mae"] < 2.5  # the rows have 4 to 10 words
    rows = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    answers = Predictor(run_dir).predict([row["text"] for row in rows])
    assert [answer["value"] for answer in answers] == pytest.approx([r["prediction"]["value"] for r in rows], abs=1e-4)
    assert (run_dir / "report.html").exists()
