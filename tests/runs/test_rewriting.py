"""Copies that a model writes, in whole runs: spans filled by the model itself, texts there and back by two runs."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from permafrost.errors import ConfigError, ResourceError
from permafrost.runs.writers import there_and_back
from tests.runs.conftest import SPLITS, command, compose_config

pytestmark = pytest.mark.usefixtures("no_report")

# By the shipped model: the tiny one knows no words.
CONTEXTUAL = ["augmentation=contextual", "augmentation.copies=2", "trainer.max_epochs=1", "model.path=null"]


def prepared_rows(tiny, *overrides: str) -> list[dict]:
    from permafrost.runs.assembly import prepare
    from permafrost.settings.config import read_settings

    return list(prepare(read_settings(compose_config(*tiny, *overrides))).rows["train"])


def test_the_model_fills_spans_of_every_kind_of_row(tiny):
    rows = prepared_rows(tiny, *CONTEXTUAL)
    originals = {row["where"]: row for row in rows[:40]}
    copies = rows[40:]
    assert 40 < len(copies) <= 80
    for row in copies:
        original = originals[row["where"].rpartition(", copy")[0]]
        assert row["label"] == original["label"]
        assert row["text"].split()[0] == original["text"].split()[0]
        assert row["text"] != original["text"]


def test_fills_are_the_same_again_and_others_with_another_seed(tiny):
    first, again, other = (prepared_rows(tiny, *CONTEXTUAL, *more) for more in ([], [], ["seed=1"]))
    assert first == again
    assert first[:40] == other[:40]
    assert first[40:] != other[40:]


def test_a_run_trains_on_what_it_filled(run_tiny, capsys):
    result, _ = run_tiny(*CONTEXTUAL, "store=on")
    assert result["status"] == "done"
    assert "augmentation=contextual: " in capsys.readouterr().out


def test_tags_stay_with_their_words(tiny, of_task):
    rows = prepared_rows(tiny, *of_task("ner"), "data.allow_leaks=true", *CONTEXTUAL)
    originals = {row["where"]: row for row in rows if ", copy" not in row["where"]}
    copies = [row for row in rows if ", copy" in row["where"]]
    assert copies
    for row in copies:
        original = originals[row["where"].rpartition(", copy")[0]]
        assert tagged(row) == tagged(original)


def tagged(row: dict) -> list[tuple[str, str]]:
    return [pair for pair in zip(row["tokens"], row["tags"], strict=True) if pair[1] != "O"]


def test_without_pretrained_weights_nothing_is_filled(run_tiny):
    with pytest.raises(ConfigError, match=r"has the pretrained model write, and with model.init=random there is none"):
        run_tiny("augmentation=contextual", "model.init=random")


@pytest.fixture(scope="module")
def translators(tiny, of_task, tmp_path_factory) -> list[str]:
    """Two runs of the real command, the second in the other direction: what `augmentation=` takes of them."""
    directory = tmp_path_factory.mktemp("translators")
    there = [*tiny, *of_task("translation"), "trainer.max_epochs=1", "task.decoding.num_beams=1"]
    back = list(there)
    for split in SPLITS:
        place = next(i for i, override in enumerate(back) if override.startswith(f"data.{split}=["))
        source, _, target = back[place].removeprefix(f"data.{split}=[").removesuffix("]").partition(",")
        back[place] = f"data.{split}=[{target},{source}]"
    for name, overrides in (("there", there), ("back", back)):
        done = command(*overrides, f"hydra.run.dir={directory}/{name}", cwd=directory)
        assert done.returncode == 0, done.stderr
    both = [f"augmentation.{name}={directory}/{name}" for name in ("there", "back")]
    return ["augmentation=back_translation", *both]


@pytest.mark.slow
def test_texts_come_back_as_the_two_runs_write_them(translators, tiny):
    from permafrost.deployment.predictor import Predictor

    rows = prepared_rows(tiny, *translators)
    there, back = (Predictor(override.partition("=")[2]) for override in translators[1:])
    originals, copies = {row["where"]: row for row in rows[:40]}, rows[40:]
    assert copies
    for row in copies[:3]:
        original = originals[row["where"].removesuffix(", copy 1")]
        (between,) = there.answer([{"source": original["text"]}])
        (returned,) = back.answer([{"source": between["text"]}])
        assert (row["text"], row["label"]) == (returned["text"], original["label"])


@pytest.mark.slow
def test_a_run_trains_on_what_came_back(translators, run_tiny):
    result, run_dir = run_tiny(*translators, "trainer.max_epochs=1")
    assert result["status"] == "done"
    assert yaml.safe_load((run_dir / "config.yaml").read_text())["augmentation"]["kind"] == "back_translation"


@pytest.mark.slow
def test_words_with_tags_do_not_come_back(translators, run_tiny, of_task):
    with pytest.raises(ConfigError, match="would lose the tags of the words"):
        run_tiny(*of_task("ner"), "data.allow_leaks=true", *translators)


@pytest.mark.slow
def test_more_copies_need_runs_that_draw(translators, run_tiny):
    with pytest.raises(ConfigError, match="translate a text alike each time"):
        run_tiny(*translators, "augmentation.copies=2")


@pytest.mark.slow
def test_runs_that_do_not_translate_are_refused(translators, finished_run, run_tiny, tmp_path):
    kind, there, back = translators
    with pytest.raises(ConfigError, match=r"augmentation.there is not set: back-translation needs two runs"):
        run_tiny(kind, back)
    with pytest.raises(ConfigError, match=r"augmentation.back=.*nowhere: no run there"):
        run_tiny(kind, there, f"augmentation.back={tmp_path}/nowhere")
    with pytest.raises(ConfigError, match="is a run of task=classification; give one of task=translation"):
        run_tiny(kind, there, f"augmentation.back={finished_run[1]}")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text(
        json.dumps({"task": {"name": "translation", "decoding": {"do_sample": False}}})
    )
    with pytest.raises(ResourceError, match="no finished run"):
        run_tiny(kind, there, f"augmentation.back={tmp_path}/begun")
    with pytest.raises(ConfigError, match="augmentation=back_translation is for texts"):
        run_tiny("task=language_modeling", "data.columns.text=text", *translators)


class Drawing:
    """In place of a run that draws what it writes."""

    def __init__(self, run: str):
        self.run = run

    def answer(self, rows):
        return [{"text": f"{row['source']}{float(torch.rand(())):.6f}"} for row in rows]


def test_runs_that_draw_write_by_the_seed_and_the_copy_alone(monkeypatch):
    monkeypatch.setattr("permafrost.deployment.predictor.Predictor", Drawing)
    random_state = torch.random.get_rng_state()
    trip = there_and_back(SimpleNamespace(there="a", back="b"), seed=3)
    assert trip(["x", "y"], 0) == trip(["x", "y"], 0)
    assert trip(["x", "y"], 0) != trip(["x", "y"], 1)
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_what_is_lost_between_the_runs_does_not_come_back(monkeypatch):
    class Losing(Drawing):
        def answer(self, rows):
            return [{"text": "" if row["source"] == "lost" else "words"} for row in rows]

    monkeypatch.setattr("permafrost.deployment.predictor.Predictor", Losing)
    assert there_and_back(SimpleNamespace(there="a", back="b"), seed=3)(["lost", "x"], 0) == ["", "words"]
