"""`permafrost store`, and `permafrost predict` on rows whose frozen part is known already."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.deployment import predictor as predictor_module
from permafrost.deployment.branches import Branches
from permafrost.deployment.predictor import Predictor
from permafrost.model.flat_rows import onednn_has_bfloat16
from permafrost.model.store_directory import entries
from permafrost.storage.checksums import write_checksums
from tests.runs.conftest import compose_config

pytestmark = pytest.mark.usefixtures("no_report")

ENTRY = re.compile("[0-9a-f]{16}-[0-9a-f]{16}")
UNKNOWN = ["snow by the sea", "a warm and sunny day"]


@pytest.fixture(scope="module")
def stored_run(tiny, tmp_path_factory) -> tuple[Path, Path]:
    """A run with the store on: its directory, and the store's."""
    from permafrost.experiment import run

    root = tmp_path_factory.mktemp("stored")
    own = ["store=on", f"store.dir={root}/activations", "trainer.precision=32-true", "optimizer.lr=1e-2"]
    run(compose_config(*tiny, *own), root / "run")
    return root / "run", root / "activations"


def invoke(*arguments) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def texts_of(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def forbid_the_trunk(monkeypatch) -> None:
    def compute(*_):
        raise AssertionError("the frozen part is computed")

    monkeypatch.setattr("permafrost.model.gpt2.trunk", compute)


def copy_of_model(run_dir: Path, copy: Path) -> Path:
    """A run directory of its own, beside the same store."""
    shutil.copytree(run_dir / "model", copy / "model")
    shutil.copy(run_dir / "config.yaml", copy / "config.yaml")
    return copy


def change_weight(run_dir: Path, name: str) -> None:
    path = run_dir / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, path, metadata={"format": "pt"})
    write_checksums(run_dir / "model")


def assert_same_answers(answers: list[dict], expected: list[dict]) -> None:
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    # states of batches of another shape, in float32
    assert [answer["score"] for answer in answers] == pytest.approx([e["score"] for e in expected], abs=1e-5)


# permafrost store


def test_list_shows_what_is_stored(stored_run):
    _, store_dir = stored_run
    printed = invoke("store", "list", "--dir", store_dir)
    assert "3 entries" in printed
    lines = [line.split() for line in printed.splitlines()]
    shown = {line[0]: line[1:7] for line in lines if line and ENTRY.fullmatch(line[0])}
    assert list(shown) == [directory.name for directory in entries(store_dir)]
    assert sorted(int(rows) for *_, rows, _ in shown.values()) == [16, 16, 40]
    assert {tuple(line[:4]) for line in shown.values()} == {("mini", "1", "float32", "32-true")}


def test_list_counts_the_tokens_of_the_rows(stored_run, data_dir, tiny_tokenizer):
    _, store_dir = stored_run
    ids = tiny_tokenizer(texts_of(data_dir / "train.csv"))["input_ids"]
    assert f" {sum(len(row) + 1 for row in ids):,} " in invoke("store", "list", "--dir", store_dir)


def test_clear_empties_the_store_and_says_how_much_it_was(stored_run, tmp_path):
    _, store_dir = stored_run
    copy = tmp_path / "activations"
    shutil.copytree(store_dir, copy)
    megabytes = sum(path.stat().st_size for path in copy.rglob("*") if path.is_file()) / 2**20
    assert f"{megabytes:,.0f} MB freed in {copy}" in invoke("store", "clear", "--dir", copy).replace("\n", "")
    assert list(copy.iterdir()) == []
    assert "0 entries" in invoke("store", "list", "--dir", copy)


def test_what_an_earlier_version_left_is_listed_and_cleared(stored_run, tmp_path):
    copy = tmp_path / "activations"
    shutil.copytree(stored_run[1], copy)
    earlier, *_ = entries(copy)
    (earlier / "manifest.json").write_text('{"model": "mini"}')
    (earlier / "last_used").unlink()
    listed = invoke("store", "list", "--dir", copy)
    assert re.search(rf"{earlier.name} +of another version, or damaged", listed)
    invoke("store", "clear", "--dir", copy)
    assert list(copy.iterdir()) == []


@pytest.mark.parametrize(("verb", "said"), [("list", "0 entries"), ("clear", "0 MB freed")])
def test_where_there_is_no_store_there_is_nothing_in_it(tmp_path, verb, said):
    assert said in invoke("store", verb, "--dir", tmp_path / "none")
    assert not (tmp_path / "none").exists()


# permafrost predict


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_known_rows_get_the_answers_that_they_get_without_the_store(stored_run, data_dir, split):
    run_dir, _ = stored_run
    known, plain = (
        [json.loads(line) for line in invoke("predict", run, "--input", data_dir / f"{split}.csv").splitlines()]
        for run in (run_dir, run_dir / "model")
    )
    assert [row["text"] for row in known] == texts_of(data_dir / f"{split}.csv")
    assert_same_answers(known, plain)


def test_known_rows_are_answered_without_the_frozen_part(stored_run, data_dir, monkeypatch):
    run_dir, _ = stored_run
    forbid_the_trunk(monkeypatch)
    assert len(invoke("predict", run_dir, "--input", data_dir / "test.csv").splitlines()) == 16
    with pytest.raises(AssertionError, match="is computed"):
        invoke("predict", run_dir, UNKNOWN[0])
    with pytest.raises(AssertionError, match="is computed"):
        invoke("predict", run_dir / "model", "--input", data_dir / "test.csv")


def test_known_and_unknown_rows_are_answered_in_the_order_asked(stored_run, data_dir):
    run_dir, _ = stored_run
    train, test = texts_of(data_dir / "train.csv"), texts_of(data_dir / "test.csv")
    asked = [test[3], UNKNOWN[0], train[7], test[0], UNKNOWN[1], train[7], test[3]]
    predictor = Predictor(run_dir)
    answers = predictor.predict(asked)
    assert_same_answers(answers, Predictor(run_dir / "model").predict(asked))
    assert_same_answers(answers, [predictor.predict([text])[0] for text in asked])


def test_a_trunk_that_was_changed_since_is_computed(stored_run, data_dir, tmp_path, monkeypatch):
    run_dir, store_dir = stored_run
    changed = copy_of_model(run_dir, tmp_path / "run")
    change_weight(changed, "transformer.h.0.mlp.c_fc.weight")
    texts = texts_of(data_dir / "test.csv")
    assert Predictor(changed).store_dir == store_dir
    assert_same_answers(Predictor(changed).predict(texts), Predictor(changed / "model").predict(texts))
    forbid_the_trunk(monkeypatch)
    with pytest.raises(AssertionError, match="is computed"):
        Predictor(changed).predict(texts)


def test_the_frozen_part_is_hashed_once_for_all_that_is_asked(stored_run, data_dir, monkeypatch):
    hashed, plain = [], predictor_module.trunk_key
    monkeypatch.setattr(predictor_module, "trunk_key", lambda *a, **how: hashed.append(1) or plain(*a, **how))
    predictor, texts = Predictor(stored_run[0]), texts_of(data_dir / "test.csv")
    for text in texts[:3]:
        predictor.predict([text])
    assert len(hashed) == 1


def test_a_server_looks_nothing_up_in_the_store(stored_run, data_dir, monkeypatch):
    run_dir, _ = stored_run
    text = texts_of(data_dir / "test.csv")[0]
    (expected,) = Predictor(run_dir).predict([text])
    monkeypatch.setattr(predictor_module, "known_rows", lambda *_: pytest.fail("the store is read"))
    (answer,) = Branches({"run": run_dir}).answers([text], None, ["run"])
    assert_same_answers([answer["run"]], [expected])
    with pytest.raises(pytest.fail.Exception, match="the store is read"):
        Predictor(run_dir).predict([text])


def test_a_branch_that_was_changed_since_still_reads_the_store(stored_run, data_dir, tmp_path, monkeypatch):
    """As after more training, or a compression of the branch alone."""
    run_dir, _ = stored_run
    changed = copy_of_model(run_dir, tmp_path / "run")
    change_weight(changed, "transformer.h.1.mlp.c_fc.weight")
    texts = texts_of(data_dir / "test.csv")
    expected = Predictor(changed / "model").predict(texts)
    forbid_the_trunk(monkeypatch)
    assert_same_answers(Predictor(changed).predict(texts), expected)


def test_what_was_cleared_is_computed_again(stored_run, data_dir, tmp_path):
    run_dir, _ = stored_run
    copy = copy_of_model(run_dir, tmp_path / "run")
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("/activations", "/cleared"))
    texts = texts_of(data_dir / "test.csv")
    assert Predictor(copy).store_dir is None
    assert_same_answers(Predictor(copy).predict(texts), Predictor(run_dir).predict(texts))


def test_a_run_without_a_store_looks_for_none(run_tiny, data_dir):
    _, run_dir = run_tiny("store=off", "trainer.max_steps=1")
    predictor = Predictor(run_dir)
    assert predictor.trunk is None
    assert len(predictor.predict(texts_of(data_dir / "test.csv"))) == 16


def test_known_rows_are_scored_without_the_frozen_part(stored_run, data_dir, monkeypatch):
    run_dir, _ = stored_run
    asked = ["--data", data_dir / "test.csv"]
    expected = json.loads(invoke("evaluate", run_dir / "model", *asked))
    forbid_the_trunk(monkeypatch)
    assert json.loads(invoke("evaluate", run_dir, *asked)) == pytest.approx(expected, abs=1e-5)


# Runs


def test_training_validation_and_test_read_what_is_stored(run_tiny, monkeypatch, capsys):
    """With another seed, and the frozen part out of reach."""
    run_tiny("store=on", name="first")
    forbid_the_trunk(monkeypatch)
    read, _ = run_tiny("store=on", "seed=1", name="second")
    assert (read["epochs"], read["tokens"]["trunk"]) == (2, 0)
    assert "0 computed; 100.0% was there" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="is computed"):
        run_tiny("store=off", name="third")


def test_half_precision_learns_alike_from_the_store_and_without(run_tiny, capsys):
    """bf16 keeps 8 bits of a number: figures agree to two digits, and both sides learn."""
    options = ["trainer.precision=bf16-mixed", "model.dropout=0", "optimizer.lr=1e-2", "trainer.max_epochs=4"]
    (on, _), (off, _) = (run_tiny(*options, f"store={mode}", name=mode) for mode in ("on", "off"))
    assert ("this CPU has no products in bfloat16" in capsys.readouterr().out) is not onednn_has_bfloat16()
    assert on["tokens"]["trunk"] > 0 == off["tokens"]["trunk"]
    assert on["test"]["loss"] == pytest.approx(off["test"]["loss"], abs=2e-2)
    assert on["test"]["accuracy"] == off["test"]["accuracy"] == 1
