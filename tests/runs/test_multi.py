"""Several tasks in one run: each is scored, answered and exported as if it were alone."""

import json

import pytest
from transformers import pipeline

from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError, ResourceError
from permafrost.experiment import run
from permafrost.settings.composing import with_parts
from permafrost.settings.config import read_settings
from tests.runs.conftest import CONF, SPLITS, command, compose_config


@pytest.fixture(scope="module")
def parts(data_dir) -> list[str]:
    csv = " ".join(f"data.{name}={data_dir}/{name}.csv" for name in SPLITS)
    conll = " ".join(f"data.{name}={data_dir}/{name}.conll" for name in SPLITS)
    pairs = " ".join(f"data.{name}=[{data_dir}/{name}.src,{data_dir}/{name}.tgt]" for name in SPLITS)
    lines = {
        "season": f"data=files {csv}",
        "degrees": f"task=regression data=files {csv} data.columns.target=score",
        "names": f"task=ner data=files {conll}",
        "mirror": f"task=translation data=files {pairs} task.decoding.max_new_tokens=8 task.validation_generations=2",
    }
    return ["task=multi", f"task.parts={{{', '.join(f'{name}: {line!r}' for name, line in lines.items())}}}"]


@pytest.fixture(scope="module")
def run_parts(tiny, parts, tmp_path_factory):
    def go(*overrides: str):
        run_dir = tmp_path_factory.mktemp("multi") / "run"
        cfg = with_parts(compose_config(*tiny, *parts, *overrides), CONF)
        return run(cfg, run_dir), run_dir

    return go


@pytest.fixture(scope="module")
def finished(run_parts, tmp_path_factory):
    """Its store is its own: in one that is shared, a test before it may have left what it would compute."""
    return run_parts("store=on", f"store.dir={tmp_path_factory.mktemp('activations')}")


def test_each_part_is_scored_by_its_own_metrics(finished):
    result, _ = finished
    for metric in ("season/accuracy", "degrees/pearson", "names/span_f1", "mirror/bleu", "mirror/perplexity"):
        assert metric in result["test"]
        assert metric in result["validation"]
    losses = [value for name, value in result["test"].items() if name.endswith("/loss")]
    assert len(losses) == 4
    assert result["test"]["loss"] == pytest.approx(sum(losses) / 4)
    assert result["data"] == "files+files+files+files"


@pytest.mark.slow
def test_with_the_store_and_without_it_is_the_same_run(run_parts, finished):
    without, _ = run_parts("store=off")
    assert finished[0]["tokens"]["trunk"] > 0
    assert without["tokens"]["trunk"] == 0
    assert without["validation"] == pytest.approx(finished[0]["validation"], abs=1e-5)


def test_every_part_answers_its_test_rows(finished):
    rows = [json.loads(line) for line in (finished[1] / "predictions.jsonl").read_text().splitlines()]
    by_part = {name: [row for row in rows if row["part"] == name] for name in ("season", "degrees", "names", "mirror")}
    assert {name: len(of_part) for name, of_part in by_part.items()} == dict.fromkeys(by_part, 16)
    assert by_part["season"][0]["prediction"]["label"] in ("warm", "cold")
    assert "Confusion on test, season" in (finished[1] / "report.html").read_text()


def test_a_part_is_a_model_of_its_own(finished):
    _, run_dir = finished
    rows = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    answered = [row for row in rows if row["part"] == "season"]
    stock = pipeline("text-classification", model=str(run_dir / "model" / "season"), device="cpu")
    predictor = Predictor(run_dir / "model" / "season")
    for row, own in zip(answered, predictor.predict([row["text"] for row in answered]), strict=True):
        assert stock(row["text"])[0]["label"] == row["prediction"]["label"] == own["label"]
        assert own["score"] == pytest.approx(row["prediction"]["score"], abs=1e-5)


def test_the_run_as_a_whole_answers_nothing_and_says_who_does(finished):
    with pytest.raises(ResourceError, match=r"a model for each of its tasks; give one: .*model/degrees"):
        Predictor(finished[1])


@pytest.mark.slow
def test_separate_branches_train_more_parameters(run_parts, finished):
    separate, run_dir = run_parts("task.branches=separate", "trainer.max_epochs=1")
    assert separate["parameters"]["trainable"] > 2 * finished[0]["parameters"]["trainable"]
    assert Predictor(run_dir / "model" / "names").predict(["snow and sunny days"])[0].keys() == {"spans"}


@pytest.mark.slow
def test_a_run_can_be_resumed(tiny, parts, tmp_path):
    cfg = with_parts(compose_config(*tiny, *parts, "trainer.max_epochs=1"), CONF)
    run(cfg, tmp_path / "run")
    again = with_parts(compose_config(*tiny, *parts, "resume=must"), CONF)
    result = run(again, tmp_path / "run")
    assert result["epochs"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "task=multi has no parts"),
        (["task.parts={a: 'optimizer=sgd'}"], "task.parts.a: optimizer=sgd is of the whole run; a part has task, data"),
        (["task.parts={a: 'experiment=sst'}"], "task.parts.a: .*did you mean 'sst"),
        (["task=classification", "task.parts={a: ''}"], "only task=multi has parts; this is task=classification"),
        (["task.parts={a: ''}", "task.monitor=a/accurcy"], "did you mean 'a/accuracy'"),
        (
            ["task.parts={a: 'task=generation task.validation_generations=0'}", "task.monitor=a/bleu"],
            "task.monitor=a/bleu: nothing logs it on validation; give task.validation_generations=100 in task.parts.a",
        ),
    ],
)
def test_what_is_wrong_with_parts_is_said(tiny, overrides, message):
    from permafrost.settings.preflight import preflight

    with pytest.raises(ConfigError, match=message):
        preflight(read_settings(with_parts(compose_config(*tiny, "task=multi", *overrides), CONF)), in_sweep=False)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["cpu", "ddp_cpu"])
def test_the_command_as_a_user_types_it(tiny, parts, tmp_path, trainer):
    """On one process and on two, of which a batch gives no loss to the other parts' heads."""
    given = [*tiny, *parts, f"trainer={trainer}", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run"]
    done = command(*given)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model" / "season" / "model.safetensors").exists()
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 4 * 16
