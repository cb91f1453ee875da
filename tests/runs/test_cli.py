"""`permafrost predict`, `evaluate` and `report` on a finished run."""

import csv
import json
import shutil

import pytest
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError, DataError, ResourceError


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_predict_answers_a_text(finished_run):
    _, run_dir = finished_run
    answer = json.loads(invoke("predict", run_dir, "hot and sunny"))
    assert answer["label"] in {"warm", "cold"}
    assert 0.5 <= answer["score"] <= 1


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_predict_answers_a_file(finished_run, data_dir, tmp_path, suffix):
    _, run_dir = finished_run
    output = tmp_path / f"answers.{suffix}"
    invoke("predict", run_dir, "--input", data_dir / "test.csv", "--output", output)
    with (data_dir / "test.csv").open(newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    written = output.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in written] if suffix == "jsonl" else list(csv.DictReader(written))
    expected = Predictor(run_dir / "model").predict(texts)
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows] == [answer["label"] for answer in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([answer["score"] for answer in expected], abs=1e-5)


def test_evaluate_gives_the_runs_own_test_figures(finished_run, data_dir):
    result, run_dir = finished_run
    scores = json.loads(invoke("evaluate", run_dir, "--data", data_dir / "test.csv"))
    assert scores["accuracy"] == pytest.approx(result["test"]["accuracy"])
    assert scores["loss"] == pytest.approx(result["test"]["loss"], abs=5e-3)  # bf16 autocast in the run


def test_report_is_made_again(finished_run):
    _, run_dir = finished_run
    (run_dir / "report.html").unlink()
    assert "report.html" in invoke("report", run_dir)
    assert (run_dir / "report.html").exists()


def test_export_halves_the_file_and_keeps_the_answers(finished_run, tmp_path):
    _, run_dir = finished_run
    invoke("export", run_dir, tmp_path / "half", "--dtype", "float16")
    sizes = [(d / "model.safetensors").stat().st_size for d in (run_dir / "model", tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    whole, half = (json.loads(invoke("predict", d, "hot and sunny")) for d in (run_dir, tmp_path / "half"))
    assert half["label"] == whole["label"]
    assert half["score"] == pytest.approx(whole["score"], abs=1e-3)  # 11 bits of mantissa


def test_without_a_directory_an_export_lies_in_the_run(finished_run):
    _, run_dir = finished_run
    assert invoke("export", run_dir, "--to", "safetensors").strip() == str(run_dir / "exported" / "safetensors")
    whole, copied = (json.loads(invoke("predict", d, "snow")) for d in (run_dir, run_dir / "exported" / "safetensors"))
    assert copied == whole
    shutil.rmtree(run_dir / "exported")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["predict", "RUN"], ConfigError, "either a text or a file"),
        (["predict", "nowhere", "text"], ResourceError, "no finished run"),
        (["predict", "RUN", "--input", "nowhere.csv"], DataError, "no such file"),
        (["export", "RUN", "RUN"], ConfigError, "is not empty"),
    ],
)
def test_errors_say_what_to_type(finished_run, arguments, error, message):
    _, run_dir = finished_run
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, [a.replace("RUN", str(run_dir)) for a in arguments], catch_exceptions=False)
