"""Scores of parts of the rows, and of all of them those that `evaluate` gives."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from permafrost.command_files import read_table
from permafrost.data.tokens.batching import Batch
from permafrost.deployment.predictor import Predictor
from permafrost.deployment.scoring import GROUPS, grouped, interval_of, joined, scored, value_of
from permafrost.experiment import run
from tests.runs.conftest import compose_config

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.mark.parametrize(
    ("task", "metric", "suffix"),
    [
        ("classification", "accuracy", "csv"),
        ("ner", "span_f1", "conll"),
        ("dialogue", "bleu", "jsonl"),
        ("dialogue", "perplexity", "jsonl"),
    ],
)
def test_all_groups_together_are_the_evaluation(tiny, of_task, data_dir, tmp_path, task, metric, suffix):
    of_own = [] if task == "classification" else of_task(task)
    run(compose_config(*tiny, *of_own, "optimizer.lr=1e-2", "data.max_length=16"), tmp_path / "run")
    predictor = Predictor(tmp_path / "run")
    table = read_table(data_dir / f"test.{suffix}", predictor.task.roles, None)
    answers = scored(predictor, table, metric)
    whole = value_of(answers)
    assert whole == pytest.approx(predictor.evaluate(table)[metric], rel=1e-5)
    low, high = interval_of(answers)
    assert low <= whole <= high
    assert answers.score(np.arange(answers.units // 2)) != pytest.approx(whole, rel=1e-9) or whole in (0, 1)


def test_a_group_that_is_drawn_twice_counts_twice(tiny, of_task, data_dir, tmp_path):
    run(compose_config(*tiny, *of_task("ner"), "optimizer.lr=1e-2", "data.max_length=16"), tmp_path / "run")
    predictor = Predictor(tmp_path / "run")
    table = read_table(data_dir / "test.conll", predictor.task.roles, None)
    rows = pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(3, 1)])
    each_once = scored(predictor, table, "span_f1")
    order = [next(n for n, group in enumerate(grouped(table.num_rows)) if row in group) for row in (0, 0, 3)]
    assert each_once.score(np.array(order)) == pytest.approx(predictor.evaluate(rows)["span_f1"], rel=1e-6)


def test_groups_go_together_where_their_outputs_do():
    def part(outputs, labels):
        rows = torch.arange(len(labels))
        return outputs, Batch(rows, rows, labels, torch.tensor(1), rows, rows, torch.tensor(1.0))

    one = part(torch.ones(3, 2), torch.tensor([[0, -100, 1], [1, -100, -100]]))
    two = part(torch.zeros(1, 2), torch.tensor([[1]]))
    ((outputs, batch),) = joined([one, two])
    assert outputs.tolist() == [[1, 1], [1, 1], [1, 1], [0, 0]]
    assert batch.labels.tolist() == [[0, -100, 1], [1, -100, -100], [1, -100, -100]]
    assert batch.source_rows.tolist() == [0, 1, 0]
    other = part(torch.zeros(1, 5, 2), torch.tensor([[1]]))
    assert joined([one, other]) == [one, other]


def test_groups_are_all_rows_once():
    for rows in (1, 7, 1000):
        groups = grouped(rows)
        assert len(groups) == min(rows, GROUPS)
        assert sorted(np.concatenate(groups)) == list(range(rows))
