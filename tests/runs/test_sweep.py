"""Sweeps through the real command: the table, trials that fail alone, side by side, and each done once."""

import csv
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from permafrost.data.problems import LEAKS_ALLOWED
from permafrost.errors import ConfigError
from permafrost.launch import earlier_or_new
from permafrost.reporting.seeds import over_seeds
from permafrost.reporting.sweep import (
    SweepTable,
    Trial,
    best_first,
    columns_and_rows,
    print_table,
    read_trials,
    record_trial,
    write_tables,
)
from permafrost.runs.record import to_write
from permafrost.runs.trials import (
    MarkedLines,
    device_of,
    earlier_result,
    narrow_devices,
    number_of,
    visible_devices,
)
from permafrost.storage.locks import sole_run
from tests.processes import holding
from tests.runs.conftest import ROOT, command, compose_config
from tests.runs.test_processes import children, is_alive


def trial(number: int, score: float | None, monitor: str = "accuracy", mode: str = "max", **overrides: str) -> Trial:
    result = {"status": "failed", "exit_code": 2, "error": "no\nand never"}
    if score is not None:
        scores = {"validation": {monitor: score}, "test": {monitor: score}}
        result = {"status": "done", "epochs": 1, "seconds": {"total": 1.0}, **scores}
    return Trial(number=number, directory=f"{number}", overrides=overrides, monitor=monitor, mode=mode, result=result)


@pytest.mark.parametrize(("mode", "order"), [("max", [2, 1, 0]), ("min", [1, 2, 0])])
def test_best_first_by_the_metrics_direction(mode, order):
    trials = [trial(0, None), trial(1, 0.2, mode=mode), trial(2, 0.9, mode=mode)]
    assert [t.number for t in best_first(trials)] == order


def test_trials_of_another_task_come_after_those_that_compare():
    trials = [trial(0, None), trial(1, 0.5), trial(2, 0.1, monitor="mse", mode="min"), trial(3, 0.6)]
    assert [t.number for t in best_first(trials)] == [3, 1, 2, 0]


def test_only_what_differs_has_a_column():
    header, rows = columns_and_rows([trial(0, 0.5, seed="1", a="x"), trial(1, 0.5, seed="1", a="y")])
    assert header[:2] == ["trial", "a"]
    assert [row[1] for row in rows] == ["x", "y"]


def of_seeds(scores: dict[tuple[str, str], dict[int, float | None]]) -> list[Trial]:
    """(size, kind) -> seed -> score, swept seed by seed."""
    seeds = dict.fromkeys(seed for by_seed in scores.values() for seed in by_seed)
    swept = [(seed, setting) for seed in seeds for setting in scores]
    return [
        trial(number, scores[size, kind][seed], seed=str(seed), size=size, kind=kind)
        for number, (seed, (size, kind)) in enumerate(swept)
    ]


SCORES = {
    ("20", "none"): {0: 0.5, 1: 0.7},
    ("20", "eda"): {0: 0.6, 1: 0.6},
    ("100", "none"): {0: 0.8, 1: None},
    ("100", "eda"): {0: 0.9, 1: 0.1},
}


def test_settings_are_compared_seed_by_seed_with_the_first_of_their_kind():
    header, rows = over_seeds(best_first(of_seeds(SCORES)))
    assert header[:3] == ["size", "kind", "seeds"]
    assert header[3:] == ["validation accuracy", "test accuracy", "difference of test to kind=none"]
    assert rows[0][:3] == ["20", "none", "2"]
    assert rows[0][4:] == ["0.6000 ± 0.1414 (0.5000 to 0.7000)", ""]
    assert rows[1][5] == "+0.0000 ± 0.1414 (-0.1000 to +0.1000)"
    assert rows[2][2:] == ["1, 1 failed", "0.8000", "0.8000", ""]
    assert rows[3][4:] == ["0.5000 ± 0.5657 (0.1000 to 0.9000)", "+0.1000"]  # of the seed that both have


def test_seeds_alone_have_no_difference():
    header, rows = over_seeds([trial(0, 0.5, seed="0"), trial(1, 0.7, seed="1")])
    assert header == ["seeds", "validation accuracy", "test accuracy"]
    assert rows == [["2", "0.6000 ± 0.1414 (0.5000 to 0.7000)", "0.6000 ± 0.1414 (0.5000 to 0.7000)"]]


def test_22_ten_seeds_are_summed_up_as_by_numpy():
    scores = np.random.default_rng(0).uniform(0.5, 0.9, 10)
    trials = [trial(number, float(score), seed=str(number)) for number, score in enumerate(scores)]
    ((seeds, _, test),) = over_seeds([*trials, trial(10, None, seed="10")])[1]
    assert seeds == "10, 1 failed"
    figures = [float(figure) for figure in re.findall(r"[\d.]+", test)]
    assert figures == pytest.approx([scores.mean(), scores.std(ddof=1), scores.min(), scores.max()], abs=5.1e-5)


def test_a_sweep_of_one_seed_has_no_table_over_seeds():
    assert over_seeds([trial(0, 0.5, seed="0", kind="a"), trial(1, 0.7, seed="0", kind="b")]) == ([], [])


@pytest.mark.parametrize("allowed", [False, True])
def test_every_table_says_that_leaks_were_allowed(allowed, tmp_path, capsys):
    trials = [trial(number, 0.5, seed=str(number)) for number in range(2)]
    more = {"allow_leaks": allowed, "frozen_blocks": 0}
    write_tables([replace(one, result={**one.result, **more}) for one in trials], tmp_path)
    told = [capsys.readouterr().out, *((tmp_path / name).read_text() for name in ("sweep.md", "seeds.md"))]
    assert [LEAKS_ALLOWED in text for text in told] == [allowed] * 3


def test_the_screen_has_a_failures_text_below_the_table(capsys):
    header, rows = columns_and_rows([trial(0, 0.5), trial(1, None)])
    print_table(header, [rows[0], [*rows[1][:-1], f"failed: {'a long story ' * 20}"]], "two trials")
    *table, below = capsys.readouterr().out.splitlines()
    assert "a long" not in "".join(table)
    assert below.startswith("trial 1 failed: a long story a long story")


def test_trials_are_read_as_they_were_recorded_in_the_order_of_their_numbers(tmp_path):
    trials = [trial(0, 0.5, seed="1"), trial(1, None), trial(2, 0.7)]
    for number in (2, 0, 1):
        record_trial(trials[number], tmp_path)
    assert read_trials(tmp_path) == trials


@pytest.mark.parametrize(
    ("name", "number"), [("MainProcess", None), ("LokyProcess-1", 0), ("LokyProcess-12", 11), ("ForkProcess-1", None)]
)
def test_joblibs_workers_have_numbers(name, number):
    assert number_of(name) == number


def test_workers_share_out_the_devices():
    assert [device_of(worker, ["4", "6"]) for worker in range(5)] == ["4", "6", "4", "6", "4"]


@pytest.mark.parametrize(
    ("worker", "accelerator", "given", "left"),
    [
        (0, "auto", "0,1", "0"),
        (1, "gpu", "0,1", "1"),
        (2, "auto", "4,6", "4"),
        (1, "cpu", "0,1", "0,1"),
        (1, "auto", "3", "3"),
    ],
)
def test_a_worker_sees_one_device(monkeypatch, worker, accelerator, given, left):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    narrow_devices(worker, accelerator)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


@pytest.mark.parametrize(("given", "devices"), [("", []), ("3", ["3"]), ("2,GPU-8a", ["2", "GPU-8a"])])
def test_visible_devices_are_those_the_user_left(given, devices, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_devices() == devices


def test_lines_are_marked_whole():
    screen = io.StringIO()
    stream = MarkedLines(screen)
    for mark, text in (("1 | ", "epo"), ("1 | ", "ch 1\n"), ("2 | ", "a\nb\nc")):
        stream.mark = mark
        stream.write(text)
    assert screen.getvalue() == "1 | epoch 1\n2 | a\n2 | b\n"


def test_another_trial_is_told_by_its_settings_and_not_by_how_it_is_started(tmp_path):
    there, run_dir = OmegaConf.create({"a": {"b": 1}, "resume": "never"}), tmp_path / "0"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_write(there))
    assert earlier_result(OmegaConf.merge(there, {"resume": "auto"}), run_dir, tmp_path) is None
    with pytest.raises(ConfigError, match=r"a\.b is 1 there and 2 here; set another hydra\.sweep\.dir"):
        earlier_result(OmegaConf.merge(there, {"a": {"b": 2}}), run_dir, tmp_path)


def sweep_in(directory: Path) -> DictConfig:
    return OmegaConf.create({"hydra": {"launcher": {}, "sweep": {"dir": str(directory)}}})


def test_45_a_second_start_of_a_sweep_is_refused_before_it_changes_anything(tmp_path, capsys):
    with holding(tmp_path / "sweep") as first:
        (tmp_path / "sweep" / "trials.jsonl").write_text("of the first start\n")
        with pytest.raises(SystemExit) as ended:
            SweepTable().on_multirun_start(sweep_in(tmp_path / "sweep"))
    assert ended.value.code == 2
    assert f"process {first.pid} on" in (told := capsys.readouterr().err)
    assert "set another hydra.sweep.dir" in told
    assert (tmp_path / "sweep" / "trials.jsonl").read_text() == "of the first start\n"


def test_a_sweep_keeps_its_directory_to_its_end(tmp_path):
    table = SweepTable()
    table.on_multirun_start(sweep_in(tmp_path))
    pickle.loads(pickle.dumps(table))  # joblib gives each worker a copy
    with pytest.raises(ConfigError, match="another run's"), sole_run(tmp_path):
        pass
    finished = trial(0, 0.5)
    record_trial(replace(finished, result={**finished.result, "frozen_blocks": 0}), tmp_path)
    table.on_multirun_end(sweep_in(tmp_path))
    with sole_run(tmp_path):
        pass


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_45_a_trial_that_another_process_trains_is_left_as_it_is(resume, tmp_path, capsys):
    cfg, run_dir = OmegaConf.create({"resume": resume, "debug": False}), tmp_path / "0"
    with holding(run_dir) as other:
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        refused = earlier_or_new(cfg, run_dir, tmp_path)
        assert {path.name for path in run_dir.iterdir()} == {"config.yaml", ".lock", ".running.json"}
    assert refused["exit_code"] == 2
    assert f"process {other.pid} on" in refused["error"]
    assert "set another hydra.sweep.dir" in refused["error"]


def test_what_a_trial_left_is_cleared_and_the_directory_stays_this_processs(tmp_path):
    cfg, run_dir = OmegaConf.create({"resume": "never"}), tmp_path / "0"
    with sole_run(run_dir):
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        (run_dir / "checkpoints").mkdir()
        (run_dir / "checkpoints" / "last.ckpt").touch()
        assert earlier_result(cfg, run_dir, tmp_path) is None
        assert {path.name for path in run_dir.iterdir()} == {".lock", ".running.json"}


@pytest.fixture(scope="module")
def small(tiny) -> list[str]:
    return ["-m", *(override for override in tiny if not override.startswith("freezing.blocks")), "trainer.max_steps=2"]


@pytest.fixture(scope="module")
def sweep(small, tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """Three trials, two at a time; the second fails."""
    directory = tmp_path_factory.mktemp("sweep")
    return run_sweep(small, directory, "freezing.blocks=1,7,0", "hydra.launcher.n_jobs=2"), directory


def run_sweep(small: list[str], directory: Path, *options: str) -> subprocess.CompletedProcess:
    return command(*small, *options, f"hydra.sweep.dir={directory}", cwd=directory.parent)


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def result(directory: Path) -> dict:
    return json.loads((directory / "result.json").read_text())


@pytest.mark.slow
def test_a_sweep_ends_with_its_table_and_one_failed_trial_fails_alone(sweep):
    done, directory = sweep
    assert done.returncode == 2, done.stderr
    assert not list(directory.rglob(".lock"))
    rows = table(directory)
    assert [row["status"].split(":")[0] for row in rows] == ["done", "done", "failed"]
    assert rows[2]["freezing.blocks"] == "7"
    scores = [float(row["validation accuracy"]) for row in rows[:2]]
    assert scores == sorted(scores, reverse=True)
    assert (directory / "sweep.md").read_text().startswith("| trial | freezing.blocks |")
    assert "trial 1 failed: freezing.blocks=7, but" in done.stdout


@pytest.mark.slow
def test_trials_side_by_side_tell_their_lines_apart(sweep):
    done, _ = sweep
    assert "0 | epoch 1/2" in done.stdout or "0 |   test: loss" in done.stdout
    assert done.stderr == "1 | error: freezing.blocks=7, but mini has 2 blocks; give 0 to 2, or all\n"


@pytest.mark.slow
def test_a_sweep_started_again_one_by_one_does_the_rest(sweep, small, tmp_path):
    _, first = sweep
    directory = tmp_path / "sweep"
    shutil.copytree(first, directory)
    (directory / "2" / "result.json").unlink()
    (directory / "2" / "metrics.jsonl").write_text("of a trial that broke off")
    before = (directory / "0" / "result.json").stat().st_mtime_ns
    done = run_sweep(small, directory, "freezing.blocks=1,7,0")
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("done before, accuracy") == 1
    assert (directory / "0" / "result.json").stat().st_mtime_ns == before
    assert result(directory / "2")["test"] == result(first / "2")["test"]
    assert "broke off" not in (directory / "2" / "metrics.jsonl").read_text()
    assert len(table(directory)) == 3


@pytest.fixture
def directory(sweep, tmp_path) -> Path:
    """A copy of the sweep's, to change."""
    return shutil.copytree(sweep[1], tmp_path / "sweep")


@pytest.fixture
def cfg(small):
    """The configuration of the sweep's first trial."""
    return compose_config(*small[1:], "freezing.blocks=1")


@pytest.mark.slow
def test_a_finished_trial_is_taken_over(cfg, directory):
    assert earlier_result(cfg, directory / "0", directory) == result(directory / "0")


@pytest.mark.slow
def test_another_trials_directory_is_left_as_it_is(cfg, directory):
    cfg.optimizer.lr = 0.125
    with pytest.raises(ConfigError, match=r"optimizer.lr is .* there and 0.125 here; set another hydra.sweep.dir"):
        earlier_result(cfg, directory / "0", directory)
    assert result(directory / "0")["status"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, '{"status": "failed"}', '{"status": "do'])
def test_what_broke_off_or_failed_is_cleared(cfg, directory, content):
    path = directory / "0" / "result.json"
    path.write_text(content) if content else path.unlink()
    assert earlier_result(cfg, directory / "0", directory) is None
    assert list((directory / "0").iterdir()) == []


@pytest.mark.slow
def test_what_broke_off_stays_for_resume_and_outside_the_sweep(cfg, directory):
    (directory / "0" / "result.json").unlink()
    assert earlier_result(cfg, directory / "0", directory / "0") is None
    cfg.resume = "auto"
    assert earlier_result(cfg, directory / "0", directory) is None
    assert (directory / "0" / "config.yaml").exists()


@pytest.mark.slow
def test_22_a_sweep_over_seeds_ends_with_their_table(small, tmp_path):
    """As experiment=augmentation_study sweeps: the seed first, what is compared last; results have the same keys."""
    done = run_sweep(small, tmp_path / "sweep", "seed=0,1", "data.max_rows_per_label=4,8", "augmentation=none,typos")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "sweep" / "seeds.md").read_text().splitlines()
    assert lines[0].startswith("| data.max_rows_per_label | augmentation | seeds | validation accuracy |")
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| 4", "none", "2"],
        ["| 4", "typos", "2"],
        ["| 8", "none", "2"],
        ["| 8", "typos", "2"],
    ]
    assert "mean over the seeds" in done.stdout
    results = [trial.result for trial in read_trials(tmp_path / "sweep")]
    assert len(results) == 8
    assert {tuple(shape_of(result)) for result in results} == {tuple(shape_of(results[0]))}


def shape_of(node: object, path: str = "") -> list[str]:
    """Every key at its place, with its value's type."""
    if not isinstance(node, dict):
        return [f"{path}: {type(node).__name__}"]
    return [line for key, value in node.items() for line in shape_of(value, f"{path}.{key}")]


@pytest.mark.slow
def test_a_stopped_sweep_leaves_no_worker_behind(small, tmp_path):
    arguments = [*small, "trainer.max_steps=-1", "trainer.max_epochs=1000", "callbacks.early_stopping=null", "seed=1,2"]
    arguments += ["hydra.launcher.n_jobs=2", f"hydra.sweep.dir={tmp_path}"]
    program = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments], stdout=subprocess.DEVNULL)
    logs = [tmp_path / number / "metrics.jsonl" for number in "01"]
    wait_for(lambda: all(log.exists() and log.stat().st_size for log in logs))
    workers = children(program.pid)
    assert len(workers) >= 2
    program.terminate()
    assert program.wait(timeout=60) == 143
    wait_for(lambda: not any(map(is_alive, workers)), 60)


@pytest.mark.slow
@pytest.mark.parametrize("resume", ["never", "auto"])
def test_45_a_sweep_started_again_while_it_trains_is_refused(small, tmp_path, resume):
    own = [*small, "trainer.max_steps=-1", "trainer.max_epochs=1000", "callbacks.early_stopping=null", "seed=1,2"]
    own += [f"hydra.sweep.dir={tmp_path / 'sweep'}", f"resume={resume}"]
    first = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *own], cwd=tmp_path, stdout=subprocess.DEVNULL)
    log = tmp_path / "sweep" / "0" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size)
    second = command(*own, cwd=tmp_path)
    assert second.returncode == 2
    assert f"process {first.pid} on" in second.stderr
    before = log.stat().st_size
    wait_for(lambda: log.stat().st_size > before)
    first.terminate()
    assert first.wait(timeout=60) == 143
    assert not (tmp_path / "sweep" / "0" / "result.json").exists()
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
def test_a_worker_has_workers_of_its_own_for_data(small, tmp_path):
    done = run_sweep(small, tmp_path, "freezing.blocks=1,0", "data.num_workers=1", "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


@pytest.mark.slow
def test_trials_leave_no_memory_behind(small, tmp_path):
    """Of the mini model, as its weights, gradients and AdamW's moments are 66 MB: one trial kept would show."""
    options = [option for option in small if not option.startswith("model.path")]
    done = run_sweep(options, tmp_path, "freezing.blocks=0", "seed=range(6)")
    assert done.returncode == 0, done.stderr
    peaks = [result(tmp_path / str(number))["peak_memory_mb"] for number in range(6)]
    assert peaks[5] - peaks[1] < 50, peaks
