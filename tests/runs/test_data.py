"""Whole runs on data that need care: put aside, cleaned, evened out, widened; and what the run says of it."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.data.fields.by_role import Notes
from permafrost.data.problems import LEAKS_ALLOWED
from permafrost.errors import ConfigError, DataError
from tests.runs.conftest import compose_config


@pytest.fixture
def train_with(data_dir, tmp_path):
    """train.csv and lines after it."""

    def path(*lines: str) -> str:
        content = (data_dir / "train.csv").read_text()
        (tmp_path / "train.csv").write_text(content + "".join(f"{line}\n" for line in lines))
        return f"data.train={tmp_path}/train.csv"

    return path


def test_bad_rows_are_put_aside_in_the_run_directory(run_tiny, train_with):
    train = train_with("hot hot,a day,,1", "too,few")
    with pytest.raises(DataError, match=r"train.csv:43: 2 columns.*\ntrain.csv:42: no label"):
        run_tiny(train)
    with pytest.raises(DataError, match=r"2 of 42 rows of train cannot be used"):
        run_tiny(train, "data.on_bad_rows=quarantine")
    _, run_dir = run_tiny(train, "data.on_bad_rows=quarantine", "data.max_bad_fraction=0.05", "trainer.max_epochs=1")
    aside = [json.loads(line) for line in (run_dir / "quarantine.jsonl").read_text().splitlines()]
    assert [row["code"] for row in aside] == ["E401", "E201"]
    assert aside[1]["row"] == {"text": "too,few"}
    card = json.loads((run_dir / "data.json").read_text())[""]
    assert card["rows"]["train"] == 40
    assert card["quarantined"] == 2
    assert "2 rows that cannot be used" in (run_dir / "report.html").read_text()


def test_a_leak_is_left_out_and_told(run_tiny, train_with, data_dir, capsys):
    with (data_dir / "test.csv").open(newline="") as file:
        leaked = next(csv.DictReader(file))
    train = train_with(f"{leaked['text'].upper()},a day,{leaked['label']},1")
    _, run_dir = run_tiny(train, "trainer.max_epochs=1")
    assert json.loads((run_dir / "data.json").read_text())[""]["leaks"]["removed"] == 1
    assert "1 left out of train" in capsys.readouterr().out
    _, run_dir = run_tiny(train, "data.allow_leaks=true", "trainer.max_epochs=1", name="allowed")
    assert json.loads((run_dir / "data.json").read_text())[""]["rows"]["train"] == 41
    assert "data.allow_leaks=true" in capsys.readouterr().out
    assert f"<h2>Scores</h2><p>{LEAKS_ALLOWED}</p>" in (run_dir / "report.html").read_text()
    assert f"<li>{LEAKS_ALLOWED}</li>" in (run_dir / "report.html").read_text()
    assert f"{LEAKS_ALLOWED}." in (run_dir / "model" / "README.md").read_text()
    assert json.loads((run_dir / "result.json").read_text())["allow_leaks"] is True


def test_no_report_speaks_of_leaks_that_were_not_allowed(finished_run):
    result, run_dir = finished_run
    assert result["allow_leaks"] is False
    for name in ("report.html", "model/README.md"):
        assert LEAKS_ALLOWED not in (run_dir / name).read_text()


def test_what_is_asked_is_cleaned_as_the_training_rows_were(run_tiny, train_with):
    train = train_with("<b>hot</b>  hot,a day,warm,1")
    _, run_dir = run_tiny(train, "cleaning=default", "trainer.max_epochs=1")
    described = json.loads((run_dir / "model" / "permafrost.json").read_text())
    assert described["cleaning"]["html"] is True
    card = (run_dir / "model" / "README.md").read_text()
    assert "cleaned (encoding, html, unicode, control, whitespace)" in card
    assert "Plain Transformers does not" in card
    answers = [
        json.loads(CliRunner().invoke(app, ["predict", str(run_dir), text], catch_exceptions=False).stdout)
        for text in ("<p>hot &amp; sunny</p>", "hot & sunny")
    ]
    assert answers[0] == answers[1]
    card = json.loads((run_dir / "data.json").read_text())[""]
    assert card["cleaned"] == {"html": 1, "whitespace": 1}


def test_a_run_without_cleaning_asks_as_it_is(finished_run):
    _, run_dir = finished_run
    described = json.loads((run_dir / "model" / "permafrost.json").read_text())
    assert not any(described["cleaning"].values())
    assert "clean" not in (run_dir / "model" / "README.md").read_text()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_34_cleaned_widened_and_sampled_rows_give_the_same_run_again(workers, run_tiny):
    how = ["cleaning=default", "augmentation=eda", "data.balance=sampling", "trainer.max_epochs=1", "store=off"]
    first, _ = run_tiny(*how, name="first")
    again, _ = run_tiny(*how, f"data.num_workers={workers}", name="again")
    assert again["validation"] == first["validation"]
    assert again["test"] == first["test"]


def test_a_fixed_number_of_copies_is_stored(run_tiny, capsys):
    how = ["augmentation=aeda", "store=on", "trainer.max_epochs=2"]
    first, _ = run_tiny(*how, name="first")
    again, _ = run_tiny(*how, name="again")
    assert first["tokens"]["trunk"] > 0
    assert again["tokens"]["trunk"] == 0
    assert again["test"] == first["test"]
    assert "augmentation=aeda: " in capsys.readouterr().out


@pytest.mark.slow
def test_words_of_sentences_are_widened_with_their_tags(run_tiny, of_task):
    result, _ = run_tiny(*of_task("ner"), "augmentation=eda", "data.allow_leaks=true", "trainer.max_epochs=1")
    assert result["status"] == "done"


def test_classes_are_evened_out_in_the_loss(run_tiny, train_with, monkeypatch):
    from permafrost.runs import fitting

    built = []
    build = fitting.build
    monkeypatch.setattr(
        fitting, "build", lambda node, *given, **known: built.append(node) or build(node, *given, **known)
    )
    train = train_with(*(f"hot more {number},a day,warm,1" for number in range(4)))  # 20 are cold, 24 warm
    run_tiny(train, "data.balance=weights", "trainer.max_epochs=1")
    (loss,) = [node for node in built if node["_target_"].endswith("CrossEntropy")]
    assert loss["class_weights"] == pytest.approx([44 / 40, 44 / 48])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.balance=weights", "loss.class_weights=[1,2]"],
            "data.balance=weights sets class_weights of the loss, which is set",
        ),
        (["task=regression", "data.columns.target=score", "data.balance=weights"], "which this loss does not have"),
        (["task=regression", "data.columns.target=score", "data.balance=sampling"], "one label each"),
        (["task=regression", "data.columns.target=score", "cleaning.wrong_labels=report"], "one label each"),
        (["cleaning.boilerplate=['(']"], "is no regular expression"),
        (["cleaning.missing.label=constant"], "cleaning.missing.constant=... says"),
        (["cleaning.missing.text=constant"], "cleaning.missing.constant=... says"),
        (["cleaning.missing.target=constant", "cleaning.missing.constant=x"], "a target is a number"),
        (["task=language_modeling", "data.columns.text=text", "augmentation=eda"], "augmentation=eda is for"),
    ],
)
def test_37_what_does_not_go_together_is_refused(overrides, message, run_tiny):
    with pytest.raises(ConfigError, match=message):
        run_tiny(*overrides)


def test_missing_targets_take_the_median(data_dir, tmp_path, tiny):
    from permafrost.runs.reading import read_splits
    from permafrost.settings.config import read_settings

    (tmp_path / "train.csv").write_text(
        "text,score\n" + "".join(f"row {i} of words,{i}\n" for i in range(9)) + "last,\n"
    )
    overrides = ["task=regression", f"data.train={tmp_path}/train.csv", "cleaning.missing.target=median"]
    settings = read_settings(compose_config(*tiny, *overrides))
    rows = read_splits(settings, ("text", "number"), Notes())
    assert rows["train"]["target"].to_pylist()[-1] == 4


def mixture(directory, **weights: float) -> list[str]:
    """Two files, one of them with other column names."""
    for name, header, word in (("days", "text,label", "day"), ("nights", "sentence,class", "night")):
        lines = [f"a {kind} {word} of number {i},{kind}" for i in range(12) for kind in ("warm", "cold")]
        (directory / f"{name}.csv").write_text("\n".join([header, *lines]) + "\n")
    parts = ", ".join(
        f"{name}: {{train: {directory}/{name}.csv, weight: {weight}}}" for name, weight in weights.items()
    )
    return ["data=mixture", f"data.mixture={{{parts}}}"]


def test_rows_of_several_files_stand_in_an_epoch_as_often_as_they_weigh(tmp_path, tiny):
    from permafrost.data.transforms.balance import drawn_rows
    from permafrost.runs.assembly import prepare
    from permafrost.settings.config import read_settings

    prepared = prepare(read_settings(compose_config(*tiny, *mixture(tmp_path, days=2.0, nights=0.5))))
    origins = prepared.rows["train"]["origin"].to_pylist()
    assert sorted(set(origins)) == ["days", "nights"]
    assert prepared.row_weights.tolist() == [{"days": 2.0, "nights": 0.5}[name] for name in origins]
    drawn = [origins[row] for row in drawn_rows(prepared.row_weights, seed=0, epoch=0)]
    assert drawn.count("days") == 48
    assert 3 < drawn.count("nights") < 21  # 12 expected, of 24


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_34_a_mixture_trains_and_gives_the_same_again(workers, run_tiny, tmp_path):
    how = [*mixture(tmp_path, days=1.0, nights=0.5), "data.test=null", "data.test_fraction=0.3", "trainer.max_epochs=2"]
    how.append("store=off")
    first, _ = run_tiny(*how, name="first")
    again, _ = run_tiny(*how, f"data.num_workers={workers}", name="again")
    assert first["validation"] == again["validation"]
    assert first["test"] == again["test"]


def test_a_mixture_of_nothing_is_refused(run_tiny):
    with pytest.raises(ConfigError, match="data=mixture has no parts"):
        run_tiny("data=mixture")


def test_a_label_that_is_probably_wrong_weighs_less(tiny, train_with):
    from permafrost.runs.assembly import prepare
    from permafrost.settings.config import read_settings

    train = train_with("hot warm sunny bright hot warm,a day,cold,0")
    overrides = [*tiny, train, "cleaning.wrong_labels=weigh", "augmentation=aeda"]
    prepared = prepare(read_settings(compose_config(*overrides)))
    rows = zip(prepared.rows["train"], prepared.row_weights, strict=True)
    assert [row["where"] for row, weight in rows if weight < 0.5] == ["train.csv:42", "train.csv:42, copy 1"]


@pytest.mark.slow
def test_more_pretraining_on_texts_without_labels_and_then_the_task(run_tiny):
    """All but the new head is frozen, so that what the task's run leaves is what the texts' run left."""
    _, texts = run_tiny("task=language_modeling", "data.columns.text=text", "freezing.blocks=0", name="texts")
    frozen = ["freezing=head_only", "freezing.blocks=all", "trainer.max_epochs=1"]
    result, run_dir = run_tiny(f"init_from={texts}", *frozen, name="task")
    assert result["status"] == "done"
    before, after = (load_file(run / "model" / "model.safetensors") for run in (texts, run_dir))
    names = [name for name in before if name.startswith("transformer.")]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)


@pytest.mark.slow
def test_one_run_writes_rows_and_another_judges_them(run_tiny, finished_run, data_dir, tmp_path):
    writes = [
        "task=generation",
        "data.columns.source=label",
        "data.columns.target=text",
        "task.decoding.do_sample=true",
    ]
    drawn = ["task.decoding.max_new_tokens=12", "task.decoding.top_k=20"]
    _, writer = run_tiny(*writes, *drawn, "trainer.max_epochs=8", "optimizer.lr=1e-2", "freezing.blocks=0")
    arguments = ["synthesize", str(writer), str(finished_run[1]), "--train", str(data_dir / "train.csv")]
    arguments += ["--output", str(tmp_path / "new.jsonl"), "--per-label", "3", "--candidates", "4"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert done.exit_code == 0
    assert 1 <= len(rows) <= 6
    assert {row["origin"] for row in rows} == {"synthetic"}
    assert {row["label"] for row in rows} <= {"warm", "cold"}
    first = (tmp_path / "new.jsonl").read_text()
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (tmp_path / "new.jsonl").read_text() == first  # by the seed


@pytest.mark.parametrize(("most", "near", "looks"), [(72, False, True), (71, False, False), (71, True, True)])
def test_near_copies_are_looked_for_up_to_so_many_rows_and_by_check_data_always(
    tiny, tmp_path, monkeypatch, most, near, looks
):
    from permafrost.data.fields.by_role import Notes
    from permafrost.runs import reading
    from permafrost.settings.config import read_settings

    monkeypatch.setattr(reading, "NEAR_ROWS", most)  # 40, 16 and 16 there are
    settings = read_settings(compose_config(*tiny, f"data.cache_dir={tmp_path}"))
    reading.read_splits(settings, ("text", "label"), Notes(), near=near)
    assert (tmp_path / "copies").is_dir() is looks


@pytest.mark.parametrize(("most", "are_there"), [(40, True), (39, False)])
def test_yardsticks_are_of_up_to_so_many_rows(run_tiny, monkeypatch, capsys, most, are_there):
    monkeypatch.setattr("permafrost.runs.files.YARDSTICK_ROWS", most)
    _, run_dir = run_tiny("yardsticks=true", "trainer.max_steps=1")
    assert (run_dir / "yardsticks.json").exists() is are_there
    assert ("no yardsticks: " in capsys.readouterr().out) is not are_there
