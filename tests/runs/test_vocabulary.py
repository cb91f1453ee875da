"""A pretrained model that reads by the words of the training texts: fewer tokens, and still plain Transformers."""

import json

import pytest


def median_tokens(run_dir) -> float:
    return json.loads((run_dir / "data.json").read_text())[""]["tokens"]["splits"]["train"]["median"]


def test_fewer_tokens_and_a_plain_pipeline(run_tiny, capsys):
    from transformers import pipeline

    _, own = run_tiny(name="own")
    _, run_dir = run_tiny("model.tokenizer=train", name="trained")
    assert "tokens are new to mini, and begin as the mean of their pieces" in capsys.readouterr().out
    assert median_tokens(run_dir) < median_tokens(own)
    rows = [json.loads(line) for line in (run_dir / "predictions.jsonl").read_text().splitlines()]
    answers = pipeline("text-classification", model=str(run_dir / "model"))([row["text"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer["label"] == row["prediction"]["label"]
        assert answer["score"] == pytest.approx(row["prediction"]["score"], abs=1e-5)


@pytest.mark.parametrize("task", ["ner", "generation", "dialogue"])
def test_of_tasks_without_a_column_named_text(run_tiny, of_task, task):
    result, run_dir = run_tiny(*of_task(task), "model.tokenizer=train", "trainer.max_epochs=1")
    assert result["status"] == "done"
    assert "sunny" in (run_dir / "model" / "tokenizer.json").read_text()


def test_a_run_goes_on_from_such_a_run(run_tiny, capsys):
    """By its tokens: nothing is exchanged a second time."""
    _, first = run_tiny("model.tokenizer=train", name="first")
    capsys.readouterr()
    _, second = run_tiny(f"init_from={first}", name="second")
    assert "are new to" not in capsys.readouterr().out
    ours, theirs = ((path / "model" / "tokenizer.json").read_text() for path in (first, second))
    assert ours == theirs
