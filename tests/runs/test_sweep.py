"""A sweep through the real command: its table, and a trial that fails alone."""

import csv

from permafrost.reporting.sweep import Trial, best_first, columns_and_rows
from tests.runs.conftest import command


def trial(number: str, accuracy: float | None, **overrides: str) -> Trial:
    result = {"status": "failed", "error": "no"}
    if accuracy is not None:
        scores = {"validation": {"accuracy": accuracy}, "test": {"accuracy": accuracy}}
        result = {"status": "done", "epochs": 1, "seconds": {"total": 1.0}, **scores}
    return Trial(directory=number, overrides=overrides, result=result)


def test_best_first_by_the_metrics_direction():
    trials = [trial("0", 0.2), trial("1", None), trial("2", 0.9)]
    assert [t.directory for t in best_first(trials, "accuracy", "max")] == ["2", "0", "1"]
    assert [t.directory for t in best_first(trials, "accuracy", "min")] == ["0", "2", "1"]


def test_only_what_differs_has_a_column():
    header, rows = columns_and_rows([trial("0", 0.5, seed="1", a="x"), trial("1", 0.5, seed="1", a="y")], "accuracy")
    assert header[:2] == ["trial", "a"]
    assert [row[1] for row in rows] == ["x", "y"]


def test_a_sweep_ends_with_its_table_and_one_failed_trial_fails_alone(tiny, tmp_path):
    small = [override for override in tiny if not override.startswith("freezing.blocks")]
    done = command(
        "-m", *small, "trainer.max_steps=2", "freezing.blocks=1,7,0", f"hydra.sweep.dir={tmp_path}/sweep", cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"].split(":")[0] for row in rows] == ["done", "done", "failed"]
    assert rows[2]["freezing.blocks"] == "7"
    scores = [float(row["validation accuracy"]) for row in rows[:2]]
    assert scores == sorted(scores, reverse=True)
    assert (tmp_path / "sweep" / "sweep.md").read_text().startswith("| trial | freezing.blocks |")
    assert (tmp_path / "sweep" / "0" / "result.json").exists()
