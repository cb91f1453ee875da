"""The mean of runs that began alike is a model like them; of runs that did not there is none.

Numbers in the names are those of the catalogue of faults, benchmarks/results/reliability.md.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.deployment.averaging import average
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError
from permafrost.storage.checksums import check_files

pytestmark = pytest.mark.usefixtures("no_report")

SHORT = ["trainer.max_epochs=1"]


@pytest.fixture
def two(run_tiny):
    """Runs of one beginning, at two rates; one was told the column that the other has found."""
    told = {"1e-3": [], "5e-3": ["data.columns.label=label"]}
    return [run_tiny(*SHORT, f"optimizer.lr={rate}", *more, name=f"at-{rate}")[1] for rate, more in told.items()]


def test_51_the_mean_of_a_run_with_itself_is_that_run(two, tmp_path):
    average([two[0]] * 3, tmp_path / "mean")
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "mean", two[0] / "model"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
    texts = ["sunny and hot", "snow"]
    assert Predictor(tmp_path / "mean").predict(texts) == Predictor(two[0]).predict(texts)


def test_51_each_weight_is_the_mean_of_theirs(two, tmp_path):
    average(two, tmp_path / "mean")
    found, first, second = (
        load_file(path / "model.safetensors") for path in (tmp_path / "mean", *(run / "model" for run in two))
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, weight in found.items():
        torch.testing.assert_close(weight, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7)
    check_files(tmp_path / "mean")


def test_51_plain_transformers_loads_it(two, tmp_path):
    from transformers import AutoModelForSequenceClassification

    average(two, tmp_path / "mean")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "mean")
    assert torch.equal(model.score.weight, load_file(tmp_path / "mean" / "model.safetensors")["score.weight"])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (["seed=1"], "seed is 1 there, and 0 here"),
        (["head.init=he"], "head is .*he.* there, and .*xavier.* here"),
        (["task=regression", "data.columns.target=score"], "task.name is regression there"),
    ],
)
def test_51_runs_that_began_apart_are_refused(run_tiny, tmp_path, other, told):
    runs = [run_tiny(*SHORT, *more, name=name)[1] for name, more in (("one", []), ("another", other))]
    with pytest.raises(ConfigError, match=rf"another did not begin as .*one: {told}"):
        average(runs, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_what_is_stored_of_a_shared_frozen_part_serves_the_mean(two, tmp_path):
    average(two, tmp_path / "mean")
    trunks = [
        json.loads((path / "permafrost.json").read_text())["trunk"] for path in (tmp_path / "mean", two[1] / "model")
    ]
    assert trunks[0] == trunks[1]


def test_the_command_needs_two_runs_and_a_new_directory(two, tmp_path):
    done = CliRunner().invoke(app, ["average", *map(str, two), "--output", str(tmp_path / "mean")])
    assert done.exit_code == 0, done.output
    for runs, told in ((two[:1], "two runs or more"), (two, "is not empty")):
        with pytest.raises(ConfigError, match=told):
            average(runs, tmp_path / "mean")
