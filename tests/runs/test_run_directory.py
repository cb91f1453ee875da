"""What a finished run leaves: the contract that programs read, and a model that plain Transformers loads."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.data.tokens.batching import TokenBatching, padding_share, shuffled_batches
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ResourceError
from permafrost.training.sealed import peek
from tests.runs.conftest import command

RESULT_KEYS = [
    *("task", "data", "model", "seed", "status", "epochs", "steps", "parameters", "frozen_blocks", "seconds"),
    *("tokens", "peak_memory_mb", "allow_leaks", "validation", "test", "compression"),
]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_result_json_keeps_its_contract(finished_run):
    result, run_dir = finished_run
    assert json.loads((run_dir / "result.json").read_text()) == result
    assert list(result) == RESULT_KEYS
    assert list(result["seconds"]) == ["setup", "trunk", "fit", "test", "total"]
    assert list(result["tokens"]) == ["trained", "trunk"]
    assert list(result["parameters"]) == ["total", "trainable"]
    scores = {"loss", "accuracy", "f1_macro", "mcc", "ece", "f1/warm", "f1/cold"}
    assert scores == set(result["test"]) == set(result["validation"])


def test_the_run_directory_is_complete(finished_run):
    _, run_dir = finished_run
    names = {path.name for path in run_dir.iterdir()}
    assert {
        "config.yaml",
        "result.json",
        "metrics.jsonl",
        "report.html",
        "checkpoints",
        "model",
        "predictions.jsonl",
    } <= names


@pytest.fixture
def unlearning(monkeypatch):
    """From the third epoch on a run goes up its loss."""
    from permafrost.training.module import FineTuning

    step = FineTuning.training_step
    monkeypatch.setattr(
        FineTuning,
        "training_step",
        lambda self, batch, number: step(self, batch, number) * (1 if self.current_epoch < 2 else -1),
    )


UNLEARNS = ["store=off", "model.dropout=0", "optimizer.lr=1e-2", "freezing.blocks=0", "scheduler=constant"]


@pytest.mark.usefixtures("unlearning")
@pytest.mark.parametrize(("monitor", "best"), [("loss", min), ("accuracy", max)])
def test_the_weights_of_the_best_validation_are_tested_and_exported(run_tiny, monitor, best):
    ends = ["trainer.max_epochs=5", "callbacks.early_stopping=null"]
    result, run_dir = run_tiny(*UNLEARNS, f"task.monitor={monitor}", *ends)
    name = f"validation/{monitor}"
    *during, _ = [line[name] for line in lines(run_dir / "metrics.jsonl") if name in line]
    assert during[-1] != best(during)
    assert result["validation"][monitor] == pytest.approx(best(during), abs=1e-6)
    kept = peek(run_dir / "checkpoints" / "best.ckpt")["state_dict"]
    exported = load_file(run_dir / "model" / "model.safetensors")
    names = [name for name in kept if name.startswith("model.transformer.")]
    assert names
    assert all(torch.equal(kept[name], exported[name.removeprefix("model.")]) for name in names)


@pytest.mark.usefixtures("unlearning")
def test_a_run_ends_when_validation_has_not_improved_for_so_long(run_tiny):
    ends = ["trainer.max_epochs=20", "callbacks.early_stopping.patience=2"]
    result, _ = run_tiny(*UNLEARNS, "task.monitor=loss", *ends)
    assert 3 <= result["epochs"] <= 5


def test_tokens_trained_are_counted_without_padding(finished_run, data_dir, tiny_tokenizer):
    result, _ = finished_run
    texts = [line.split(",")[0] for line in (data_dir / "train.csv").read_text().splitlines()[1:]]
    assert result["tokens"]["trained"] == 2 * sum(len(ids) + 1 for ids in tiny_tokenizer(texts)["input_ids"])


def test_each_epoch_says_its_share_of_padding(finished_run, data_dir, tiny_tokenizer):
    """By the plan of its batches."""
    _, run_dir = finished_run
    texts = [line.split(",")[0] for line in (data_dir / "train.csv").read_text().splitlines()[1:]]
    lengths = np.array([len(ids) + 1 for ids in tiny_tokenizer(texts)["input_ids"]])
    budget = TokenBatching(max_tokens=200)
    plans = [shuffled_batches(lengths, budget, seed=0, epoch=epoch) for epoch in range(2)]
    logged = [row["train/padding_share"] for row in lines(run_dir / "metrics.jsonl") if "train/padding_share" in row]
    assert logged == pytest.approx([padding_share(plan, lengths) for plan in plans], abs=1e-6)
    assert 0 < logged[0] < 1


def test_it_learns(run_tiny):
    result, _ = run_tiny("optimizer.lr=1e-2", "trainer.max_epochs=6", "freezing.blocks=0")
    assert result["test"]["accuracy"] > 0.9


def test_metrics_jsonl_holds_the_curves(finished_run):
    _, run_dir = finished_run
    logged = {name for row in lines(run_dir / "metrics.jsonl") for name in row}
    assert {
        "step",
        "epoch",
        "validation/loss",
        "validation/accuracy",
        "test/accuracy",
        "train/tokens_per_second",
    } <= logged


def test_checkpoints_load_as_tensors_only(finished_run):
    _, run_dir = finished_run
    for name in ("best", "last"):
        assert "state_dict" in torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_checkpoints_hold_what_is_trained_and_nothing_frozen(finished_run):
    _, run_dir = finished_run
    for name in ("best", "last"):
        names = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"].keys()
        assert {"model.transformer.h.1.ln_1.weight", "model.head.score.weight"} <= names
        assert not [name for name in names if name.startswith(("model.transformer.h.0.", "model.transformer.wte."))]


def test_a_run_does_not_go_on_over_other_frozen_weights(run_tiny, tiny_model_dir, tmp_path):
    from transformers import GPT2LMHeadModel

    run_tiny(name="run")
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    model = GPT2LMHeadModel.from_pretrained(other)
    model.transformer.h[0].ln_1.bias.data += 1e-3
    model.save_pretrained(other)
    with pytest.raises(ResourceError, match="over other frozen weights"):
        run_tiny(f"model.path={other}", "resume=must", "trainer.max_epochs=3", name="run")


def test_a_transformers_pipeline_answers_with_the_same_scores(finished_run):
    from transformers import pipeline

    _, run_dir = finished_run
    rows = lines(run_dir / "predictions.jsonl")
    answers = pipeline("text-classification", model=str(run_dir / "model"))([row["text"] for row in rows], batch_size=4)
    for row, answer in zip(rows, answers, strict=True):
        assert answer["label"] == row["prediction"]["label"]
        # bf16 autocast in the run against float32 in the pipeline: 8 bits of mantissa
        assert answer["score"] == pytest.approx(row["prediction"]["score"], abs=4e-3)


def test_a_transformers_pipeline_equals_the_predictor(finished_run):
    from transformers import pipeline

    from permafrost.deployment.predictor import Predictor

    _, run_dir = finished_run
    texts = ["hot sunny warm", "frost and ice", "a"]
    answers = pipeline("text-classification", model=str(run_dir / "model"))(texts, batch_size=3)
    for ours, theirs in zip(Predictor(run_dir).predict(texts), answers, strict=True):
        assert ours["label"] == theirs["label"]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)


def test_frozen_parameters_are_bitwise_unchanged(finished_run, tiny_model_dir):
    _, run_dir = finished_run
    before, after = load_file(tiny_model_dir / "model.safetensors"), load_file(run_dir / "model" / "model.safetensors")
    frozen = [name for name in after if name.startswith(("transformer.wte", "transformer.wpe", "transformer.h.0."))]
    trained = [name for name in after if name.startswith(("transformer.h.1.", "transformer.ln_f"))]
    assert len(frozen) == 14
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in trained)


@pytest.mark.parametrize("store", ["on", "off"])  # auto decides by measuring, now so, now so
def test_the_same_command_gives_the_same_figures(run_tiny, store):
    first, _ = run_tiny(f"store={store}", name="a")
    second, _ = run_tiny(f"store={store}", name="b")
    assert first["test"] == second["test"]
    assert first["validation"] == second["validation"]


def test_workers_change_nothing(run_tiny):
    first, _ = run_tiny("store=off", "trainer.max_epochs=1", name="a")
    second, _ = run_tiny("store=off", "trainer.max_epochs=1", "data.num_workers=1", name="b")
    assert first["test"] == second["test"]


def test_another_seed_gives_other_figures(run_tiny):
    assert run_tiny("seed=1", name="a")[0]["test"]["loss"] != run_tiny("seed=2", name="b")[0]["test"]["loss"]


def test_a_run_directory_is_not_reused(run_tiny):
    from permafrost.errors import ConfigError

    run_tiny("trainer.max_steps=1")
    with pytest.raises(ConfigError, match="already holds a run"):
        run_tiny("trainer.max_steps=1")


@pytest.mark.slow  # as test_resume.py does, of which one is quick
@pytest.mark.parametrize("stop_at", [2, 4, 6, 8])
def test_a_stopped_run_goes_on_where_it_was(run_tiny, stop_at):
    """In mid-epoch and between epochs: without dropout the figures are those of a run in one go."""
    options = ["model.dropout=0", "trainer.val_check_interval=2", "callbacks.early_stopping=null"]
    options.append("store=off")  # store=auto may decide otherwise for each of two runs on a busy machine
    options += ["scheduler=constant", "scheduler.warmup=0"]  # a schedule over fewer steps is another schedule
    run_tiny(*options, f"trainer.max_steps={stop_at}", name="a")
    resumed, _ = run_tiny(*options, "resume=auto", name="a")
    whole, _ = run_tiny(*options, name="b")
    assert resumed["steps"] == whole["steps"]
    assert resumed["tokens"]["trained"] == whole["tokens"]["trained"]
    assert resumed["test"] == whole["test"]


def test_regression_answers_in_the_users_units(run_tiny):
    _, run_dir = run_tiny("task=regression", "data.columns.target=score", "optimizer.lr=1e-2", "trainer.max_epochs=10")
    values = [row["prediction"]["value"] for row in lines(run_dir / "predictions.jsonl")]
    assert max(values) > 2 > min(values)
    assert "score *" in (run_dir / "model" / "README.md").read_text()


def test_a_language_model_generates_in_plain_transformers(run_tiny):
    from transformers import pipeline

    _, run_dir = run_tiny("task=language_modeling", "freezing=none", "freezing.blocks=0", "data.max_length=16")
    writer = pipeline("text-generation", model=str(run_dir / "model"))
    answer = writer("cold", max_new_tokens=8, return_full_text=False)[0]["generated_text"]
    assert Predictor(run_dir).predict(["cold"]) == [{"text": answer}]
    assert Predictor(run_dir).predict(["", "cold " * 50])[0].keys() == {"text"}


def test_a_language_model_is_evaluated_as_it_was_tested(run_tiny, data_dir, tmp_path):
    options = ["task=language_modeling", "freezing=none", "freezing.blocks=0", "data.max_length=16"]
    result, run_dir = run_tiny(*options, "data.columns.text=text")
    texts = [row["text"] for row in csv.DictReader((data_dir / "test.csv").read_text().splitlines())]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = CliRunner().invoke(app, ["evaluate", str(run_dir), "--data", str(tmp_path / "test.jsonl")])
    scores = json.loads(found.stdout)
    for name in ("loss", "perplexity", "word_perplexity"):
        assert scores[name] == pytest.approx(result["test"][name], rel=1e-5)


def test_a_language_model_shows_how_a_text_goes_on_as_it_learns(run_tiny, capsys):
    run_tiny("task=language_modeling", "freezing=none", "freezing.blocks=0", "data.max_length=16")
    told = capsys.readouterr().out
    assert len(re.findall(r"^  '.*' -> '.*'$", told, re.MULTILINE)) == 2  # after each epoch
    assert re.search(r"first row, 16 tokens, with loss on each but the first: '.*'\n  its tokens: \S+", told)


def test_every_card_says_how_its_model_is_loaded(run_tiny, of_task):
    one_epoch = "trainer.max_epochs=1"
    for task, loading in {
        "translation": "'text-generation'",
        "dialogue": "'A: TEXT<end of text>B:'",
        "acts": "'token-classification'",
        "ner": "'token-classification'",
        "multi_label": "'text-classification'",
    }.items():
        _, run_dir = run_tiny(*of_task(task), one_epoch, name=task)
        assert loading in (run_dir / "model" / "README.md").read_text()


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_other_poolings_load_by_their_own_words(run_tiny, pooling):
    from permafrost.deployment.predictor import Predictor

    _, run_dir = run_tiny(f"head={pooling}", "trainer.precision=32-true")
    assert "Predictor" in (run_dir / "model" / "README.md").read_text()
    rows = lines(run_dir / "predictions.jsonl")
    answers = Predictor(run_dir).predict([row["text"] for row in rows])
    assert [a["score"] for a in answers] == pytest.approx([row["prediction"]["score"] for row in rows], abs=1e-5)


def test_yardsticks_stand_beside_the_result(finished_run):
    _, run_dir = finished_run
    yardsticks = json.loads((run_dir / "yardsticks.json").read_text())
    assert yardsticks["accuracy of the majority label"] == 0.5
    assert yardsticks["accuracy of TF-IDF + logistic regression"] > 0.9


def test_report_shows_scores_and_errors(finished_run):
    _, run_dir = finished_run
    page = (run_dir / "report.html").read_text()
    assert "<svg" in page
    assert "Confusion on test" in page
    assert "majority label" in page
    data = page[page.index("<h2>Data</h2>") : page.index("<h2>Configuration</h2>")]
    assert data.count("<svg") == 2  # classes and lengths
    assert "<li>train classes: cold 20, warm 20; the commonest is 1.0 times the rarest</li>" in data
    assert "an example" in data


def test_no_callbacks_and_still_a_result(run_tiny):
    result, run_dir = run_tiny("callbacks=none", "trainer.max_epochs=1")
    assert result["tokens"]["trained"] > 0
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(tiny, tmp_path):
    """Gradients of two halves are summed in another order than those of one batch: equal to float32 rounding."""
    options = [*tiny, "model.dropout=0", "trainer.precision=32-true"]
    for name, trainer in (("one", "cpu"), ("two", "ddp_cpu")):
        done = command(*options, f"trainer={trainer}", f"hydra.run.dir={tmp_path}/{name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert two["test"] == pytest.approx(one["test"], abs=1e-5)
    assert two["tokens"] == one["tokens"] | {"trunk": 0}  # it reads what the first has stored
    assert len(lines(tmp_path / "two" / "predictions.jsonl")) == 16
