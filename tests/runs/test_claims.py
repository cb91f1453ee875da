"""A run directory is one configuration's; an unfinished run is found by its settings."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from permafrost.errors import ConfigError
from permafrost.runs.claims import check_same, is_free, is_named_by_time, same_content, unfinished_run


def config(**changes):
    cfg = {"seed": 0, "optimizer": {"lr": 0.1}, "trainer": {"max_epochs": 2}, "model": {"path": "a"}, "resume": "auto"}
    return OmegaConf.merge(OmegaConf.create({**cfg, "resume_allow_changes": False}), changes)


@pytest.fixture
def begun(tmp_path):
    """A run that was begun with `config()`."""
    run_dir = tmp_path / "2026-11-25" / "01-11-57-classification-mini"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    return run_dir


def test_the_same_settings_are_no_change(begun):
    assert check_same(begun, config(resume="must")) == {}


def test_12_other_settings_are_shown_and_refused(begun):
    with pytest.raises(ConfigError) as raised:
        check_same(begun, config(seed=1, optimizer={"lr": 0.2}, trainer={"max_epochs": 3}))
    lines = str(raised.value).splitlines()
    assert lines[1:3] == ["  seed: 0 there, 1 here", "  optimizer.lr: 0.1 there, 0.2 here"]
    assert "resume_allow_changes=true" in lines[3]
    assert len(lines) == 4


def test_they_may_be_allowed(begun):
    assert check_same(begun, config(seed=1, resume_allow_changes=True)) == {"seed": (0, 1)}


def test_how_long_and_where_may_change(begun):
    changed = check_same(begun, config(trainer={"max_epochs": 3}, model={"path": "b"}))
    assert changed == {"trainer.max_epochs": (2, 3), "model.path": ("a", "b")}


def test_an_empty_configuration_is_none(begun):
    (begun / "config.yaml").write_text("")
    assert check_same(begun, config(seed=5)) == {}


@pytest.mark.parametrize(
    ("key", "free"),
    [
        ("trainer.max_steps", True),
        ("parts.films.data.train", True),
        ("logger.wandb.project", True),
        ("callbacks.early_stopping.patience", False),
        ("data.max_tokens_per_batch", False),
        ("trainer.accumulate_grad_batches", False),
        ("store.dtype", False),
        ("parts.films.loss.gamma", False),
    ],
)
def test_what_may_change(key, free):
    assert is_free(key) is free


@pytest.mark.parametrize(
    ("path", "by_time"),
    [
        ("outputs/2026-11-25/01-11-57-classification-mini", True),
        ("outputs/mine", False),
        ("outputs/sweeps/2026-11-25/01-11-57/3", False),
        ("2026-11-25/mine", False),
    ],
)
def test_directories_named_by_the_time_are_known(path, by_time):
    assert is_named_by_time(Path(path)) is by_time


@pytest.fixture
def made(tmp_path):
    """Where a new run would be."""
    return tmp_path / "2026-11-26" / "08-00-00-classification-mini"


def test_the_unfinished_run_of_these_settings_is_found(begun, made):
    assert unfinished_run(config(trainer={"max_epochs": 9}), made) == begun


def test_others_are_not(begun, made):
    assert unfinished_run(config(seed=1), made) is None
    assert unfinished_run(config(), made.with_name("08-00-00-regression-mini")) is None


@pytest.mark.parametrize(("content", "found"), [('{"status": "done"}', False), ('{"status": "failed"}', True)])
def test_a_finished_one_is_not_gone_on_with(begun, made, content, found):
    (begun / "result.json").write_text(content)
    assert (unfinished_run(config(), made) == begun) is found


def test_the_latest_of_several(begun, made):
    later = begun.with_name("13-00-00-classification-mini")
    later.mkdir()
    (later / "config.yaml").write_text(OmegaConf.to_yaml(config()))
    assert unfinished_run(config(), made) == later


def test_other_rows_are_refused():
    notes = {"the train split": "a", "the tokenizer": "b"}
    same_content(notes, notes)
    with pytest.raises(ConfigError, match="the train split is not what the run was begun with"):
        same_content(notes, notes | {"the train split": "c"})
