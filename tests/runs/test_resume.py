"""A run that was stopped and goes on is, bit for bit, the run that was never stopped.

Numbers in the names are those of the catalogue of faults, benchmarks/results/reliability.md.
"""

import csv
import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from permafrost.errors import ConfigError, DataError, ResourceError
from permafrost.settings.composing import with_parts
from permafrost.training.callbacks.resume_point import ResumePoint, best_is_here_
from permafrost.training.callbacks.throughput import Throughput
from permafrost.training.checkpoints import newest_good
from permafrost.training.module import FineTuning
from permafrost.training.sealed import peek, write_sealed
from permafrost.training.stopping import Stopped
from tests.runs.conftest import CONF, ROOT, SPLITS, compose_config

pytestmark = pytest.mark.usefixtures("no_report")

# Dropout and shuffling are on; a step is two batches, and validation comes in the middle of an epoch, too.
RECIPE = ["model.dropout=0.3", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=2"]
RECIPE += ["store=on", "trainer.log_every_n_steps=1", "trainer.max_epochs=3", "callbacks.early_stopping.patience=50"]
OF_TIME = ("train/tokens_per_second", "train/epoch_seconds")


def logged(run_dir: Path) -> list[dict]:
    """Every logged line, without what the clock says; numbers as they were printed, to the last bit."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_TIME} for line in lines]


def assert_same_run(ours: Path, whole: Path) -> None:
    assert logged(ours) == logged(whole)
    for name in ("last", "best"):
        found, expected = (peek(run_dir / "checkpoints" / f"{name}.ckpt") for run_dir in (ours, whole))
        assert found["state_dict"].keys() == expected["state_dict"].keys()
        assert all(torch.equal(value, expected["state_dict"][key]) for key, value in found["state_dict"].items())
    results = [json.loads((run_dir / "result.json").read_text()) for run_dir in (ours, whole)]
    for key in ("epochs", "steps", "validation", "test", "parameters"):
        assert results[0][key] == results[1][key]
    assert results[0]["tokens"]["trained"] == results[1]["tokens"]["trained"]
    answers = [path / "predictions.jsonl" for path in (ours, whole) if (path / "predictions.jsonl").exists()]
    assert len({path.read_text() for path in answers}) <= 1  # a plain language model gives none
    assert len(answers) != 1


@pytest.fixture(scope="module")
def go(tiny, tmp_path_factory):
    """A run in this process; all of this file share a store, which the first fills."""
    from permafrost.experiment import run

    root = tmp_path_factory.mktemp("resume")

    def go(*overrides: str, name: str) -> Path:
        cfg = with_parts(compose_config(*tiny, f"store.dir={root}/activations", *overrides), CONF)
        run(cfg, root / name)
        return root / name

    return go


@pytest.fixture(scope="module")
def whole(go):
    """Runs that nothing stops, each made once."""
    made: dict[tuple[str, ...], Path] = {}

    def whole(*recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = go(*recipe, name=f"whole-{len(made)}")
        return made[recipe]

    return whole


@pytest.fixture
def stopped(go, request):
    """The run directory of one that got a signal as a batch of this number ended, counted over the run from 1."""

    def stopped(batch: int, *recipe: str, sent: int = signal.SIGTERM) -> Path:
        end_of_batch = Throughput.on_train_batch_end

        def ends(self, trainer, *arguments):
            end_of_batch(self, trainer, *arguments)
            if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batch:
                os.kill(os.getpid(), sent)

        name = request.node.name.replace("/", "-")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Throughput, "on_train_batch_end", ends)
            with pytest.raises(Stopped) as raised:
                go(*recipe, name=name)
        assert raised.value.code == 128 + sent
        return Path(name)

    return stopped


BATCHES = 18  # of RECIPE


@pytest.mark.parametrize(
    ("batch", "workers"),
    [
        (12, 0),
        *(pytest.param(batch, 0, marks=pytest.mark.slow) for batch in range(1, BATCHES + 1) if batch != 12),
        *(pytest.param(batch, 2, marks=pytest.mark.slow) for batch in (1, 2, 5, 6, 7, BATCHES)),
    ],
)
def test_1_a_stopped_run_goes_on_to_the_last_bit(go, whole, stopped, batch, workers):
    recipe = [*RECIPE, f"data.num_workers={workers}"]
    name = str(stopped(batch, *recipe))
    assert_same_run(go(*recipe, "resume=must", name=name), whole(*recipe))


OTHERS = {
    "plateau": ["scheduler=plateau", "scheduler.patience=0", "callbacks.early_stopping.min_delta=1"],
    "weights averaged over steps": ["callbacks=averaged", "callbacks.average.decay=0.5"],
    "muon, with a rate for each depth": ["optimizer=muon", "freezing.layer_lr_decay=0.5"],
    "momentum": ["optimizer=momentum", "scheduler=wsd"],
    "adafactor": ["optimizer=adafactor"],
    "gradient descent": ["optimizer=gd", "trainer.val_check_interval=1.0"],
    "no store": ["store=off"],
    "so many steps": ["trainer.max_steps=5"],
    "stopped early": ["callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=9"],
    "texts by drawing": ["task=generation", "task.decoding.do_sample=true", "trainer.max_epochs=2"],
    "a language model": ["task=language_modeling", "data.max_length=16"],
    "two parts": ["task=multi"],
    "changed copies, and rows drawn": ["augmentation=aeda", "data.balance=sampling"],
}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("name", OTHERS)
def test_1_and_4_whatever_the_recipe(go, whole, stopped, of_task, data_dir, name, batch):
    recipe = [*RECIPE, *OTHERS[name]]
    if name == "two parts":
        files = "data=files " + " ".join(f"data.{split}={data_dir}/{split}.csv" for split in SPLITS)
        of_parts = {"a": f"task=classification {files}", "b": f"task=regression data.columns.target=score {files}"}
        recipe.append(f"task.parts={{a: '{of_parts['a']}', b: '{of_parts['b']}'}}")
    if name == "texts by drawing":
        recipe += of_task("generation")[1:]
    run_dir = str(stopped(min(batch, 4) if name == "stopped early" else batch, *recipe))
    assert_same_run(go(*recipe, "resume=must", name=run_dir), whole(*recipe))


@pytest.mark.slow
def test_a_run_may_be_stopped_after_every_step(go, whole, stopped):
    name = str(stopped(1, *RECIPE))
    for batch in range(3, BATCHES + 1, 2):
        again = stopped(batch, *RECIPE, "resume=must")
        assert str(again) == name
    assert_same_run(go(*RECIPE, "resume=must", name=name), whole(*RECIPE))


@pytest.mark.parametrize(
    "where", ["validation", *(pytest.param(w, marks=pytest.mark.slow) for w in ("a save", "the test", "the export"))]
)
def test_13_a_signal_at_any_other_time(go, whole, monkeypatch, where, request):
    """Validation and the save are ended first; afterwards there is nothing to save, and the run ends at once."""
    from permafrost import experiment
    from permafrost.launch import end_now
    from permafrost.training import checkpoints
    from permafrost.training.module import FineTuning

    owner, name = {
        "validation": (FineTuning, "validation_step"),
        "a save": (checkpoints, "write_sealed"),
        "the test": (FineTuning, "test_step"),
        "the export": (experiment, "write_run"),
    }[where]
    wrapped = getattr(owner, name)

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return wrapped(*arguments, **options)

    before = signal.signal(signal.SIGTERM, end_now)  # as the program has it
    run_dir = request.node.name.replace("/", "-")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(SystemExit) as raised:
            go(*RECIPE, name=run_dir)
    signal.signal(signal.SIGTERM, before)
    assert raised.value.code == 143
    assert_same_run(go(*RECIPE, "resume=must", name=run_dir), whole(*RECIPE))


@pytest.mark.slow
def test_14_a_first_sigint_saves(go, whole, stopped):
    name = str(stopped(5, *RECIPE, sent=signal.SIGINT))
    assert_same_run(go(*RECIPE, "resume=auto", name=name), whole(*RECIPE))


def test_8_to_10_the_newest_whole_checkpoint_is_gone_on_from(go, whole, stopped, capsys):
    name = str(stopped(7, *RECIPE))
    damage = [
        ("last", lambda content: content[:-1]),
        ("previous", lambda content: bytes([content[0] ^ 1]) + content[1:]),
    ]
    directory = whole(*RECIPE).parent / name / "checkpoints"
    kept = {file: (directory / f"{file}.ckpt").read_bytes() for file, _ in damage}
    for file, damaged in damage:
        (directory / f"{file}.ckpt").write_bytes(damaged(kept[file]))
    with pytest.raises(
        DataError, match=r"(?s)no checkpoint is whole.*last\.ckpt is damaged.*previous\.ckpt is dam"
    ) as raised:
        go(*RECIPE, "resume=auto", name=name)
    assert raised.value.exit_code == 3
    (directory / "previous.ckpt").write_bytes(kept["previous"])
    run_dir = go(*RECIPE, "resume=auto", name=name)
    told = next(line for line in capsys.readouterr().out.splitlines() if "is damaged" in line)
    assert told.startswith(f"  {directory}/last.ckpt is damaged: it has no checksum")
    assert told.endswith(f"; going on from {directory}/previous.ckpt")
    assert_same_run(run_dir, whole(*RECIPE))


@pytest.mark.slow
def test_3_the_last_save_is_ended_by_the_next_start(go, whole):
    run_dir = go(*RECIPE, name="killed in its last save")
    (run_dir / "checkpoints" / "last.ckpt").replace(run_dir / "checkpoints" / "next.ckpt")
    (run_dir / "result.json").unlink()
    go(*RECIPE, "resume=auto", name=run_dir.name)
    assert_same_run(run_dir, whole(*RECIPE))
    assert {path.name for path in (run_dir / "checkpoints").glob("*.ckpt")} == {
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    }


@pytest.mark.slow
def test_12_other_settings_are_refused_and_allowed_by_name(go, stopped):
    name = str(stopped(5, *RECIPE))
    with pytest.raises(
        ConfigError, match=r"(?s)begun with other settings:\n  seed: 0 there, 1 here\n.*allow_changes=true"
    ):
        go(*RECIPE, "resume=auto", "seed=1", name=name)
    run_dir = go(*RECIPE, "resume=auto", "seed=1", "resume_allow_changes=true", name=name)
    assert json.loads((run_dir / "result.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_12_other_rows_are_refused(go, whole, stopped, data_dir, tmp_path):
    name = str(stopped(5, *RECIPE))
    rows = (data_dir / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.csv").write_text("".join(rows[:-1]))
    with pytest.raises(ConfigError, match="the train split is not what the run was begun with"):
        go(*RECIPE, "resume=auto", f"data.train={tmp_path}/fewer.csv", name=name)
    config = (whole(*RECIPE).parent / name / "config.yaml").read_text()
    assert "fewer.csv" not in config  # what was refused is written nowhere


@pytest.mark.slow
def test_a_run_directory_may_be_moved_and_its_best_stays(go, whole, stopped):
    name, root = str(stopped(12, *RECIPE)), whole(*RECIPE).parent
    shutil.move(root / name, root / f"{name}-moved")
    assert_same_run(go(*RECIPE, "resume=auto", name=f"{name}-moved"), whole(*RECIPE))


def test_a_moved_best_is_found_beside_the_checkpoint(tmp_path):
    (tmp_path / "here").mkdir()
    state = {"dirpath": "/gone", "best_model_path": "/gone/best.ckpt", "best_k_models": {"/gone/best.ckpt": 0.5}}
    state["kth_best_model_path"] = "/gone/best.ckpt"
    as_it_was = dict(state)
    best_is_here_(state, tmp_path / "here")
    assert state == as_it_was  # there is none
    (tmp_path / "here" / "best.ckpt").touch()
    best_is_here_(state, tmp_path / "here")
    best = str(tmp_path / "here" / "best.ckpt")
    assert state == {
        "dirpath": str(tmp_path / "here"),
        "best_model_path": best,
        "best_k_models": {best: 0.5},
        "kth_best_model_path": best,
    }
    best_is_here_(state, tmp_path / "other")  # that of another run is copied
    assert (tmp_path / "other" / "best.ckpt").is_file()
    assert state["dirpath"] == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("every", "saves"),
    [("2", 6), ("30s", 6), *(pytest.param(*case, marks=pytest.mark.slow) for case in [("1", 9), ("1h", 3)])],
)
def test_saves_come_after_so_many_steps_after_validations_and_at_the_end(go, monkeypatch, every, saves):
    """Nine steps, three an epoch; by the clock twenty seconds pass each time that it is asked."""
    from permafrost.training.callbacks import resume_point

    shift, seen, clock = resume_point.shift, [], itertools.count(0, 20)
    monkeypatch.setattr(resume_point, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(resume_point, "shift", lambda directory: seen.append(directory) or shift(directory))
    go(*RECIPE, f"save_every={every}", "trainer.val_check_interval=1.0", name=f"every-{every}")
    assert len(seen) == saves


@pytest.mark.slow
@pytest.mark.parametrize("write", [0, 3, 4])
def test_6_a_run_whose_disk_fills_up_ends_with_4_and_goes_on(go, whole, monkeypatch, write):
    """At its first checkpoint, or at a later one, be it the best or the last."""
    from permafrost.training import sealed

    save, written = sealed._save, itertools.count()

    def save_or_fail(content, file):
        if next(written) == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(content, file)

    name = f"full-{write}"
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "_save", save_or_fail)
        with pytest.raises(ResourceError, match=r"cannot write .*\.ckpt: No space left .* MB are free") as raised:
            go(*RECIPE, name=name)
    assert raised.value.exit_code == 4
    run_dir = go(*RECIPE, "resume=auto", name=name)
    assert_same_run(run_dir, whole(*RECIPE))
    assert not list(run_dir.rglob("*.partial"))


class Broken(Exception):
    """What ends a run in the midst of a step, as a kill would."""


@pytest.fixture
def broken_off(go, request):
    """The name of a run that ended as a batch of this number did, counted over the run from 1, and saved nothing."""

    def broken_off(batch: int, *recipe: str) -> str:
        end_of_batch = Throughput.on_train_batch_end

        def ends(self, trainer, *arguments):
            end_of_batch(self, trainer, *arguments)
            if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == batch:
                raise Broken

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Throughput, "on_train_batch_end", ends)
            with pytest.raises(Broken):
                go(*recipe, name=request.node.name)
        return request.node.name

    return broken_off


def rows_of_csv(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "csv" / "metrics.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in OF_TIME} for row in csv.DictReader(file)]


def tensorboard_events(run_dir: Path) -> list[tuple[str, int, float]]:
    """Every number in the files, also what TensorBoard would not show."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    files = sorted((run_dir / "tensorboard").glob("events.*"), key=lambda path: int(path.suffix[1:]))  # as they began
    events = [Event.FromString(raw) for path in files for raw in RawEventFileLoader(str(path)).Load()]
    numbers = [(value.tag, event.step, value.simple_value) for event in events for value in event.summary.value]
    return [number for number in numbers if number[0] not in OF_TIME]


def test_logs_of_a_run_that_broke_off_have_each_step_once(go, whole, broken_off):
    """It is gone on with from step 6, and step 6 has been logged."""
    recipe = [*RECIPE, "logger=[csv,tensorboard]", "trainer.val_check_interval=1.0", "save_every=100"]
    name = broken_off(15, *recipe)
    run_dir = whole(*recipe).parent / name
    assert 6 in {step for _, step, _ in tensorboard_events(run_dir)}
    assert "6" in {row["step"] for row in rows_of_csv(run_dir)}
    assert go(*recipe, "resume=must", name=name) == run_dir
    assert rows_of_csv(run_dir) == rows_of_csv(whole(*recipe))
    assert tensorboard_events(run_dir) == tensorboard_events(whole(*recipe))
    assert logged(run_dir) == logged(whole(*recipe))


@pytest.mark.slow
def test_of_a_start_that_saved_nothing_no_log_is_kept(go, whole, broken_off):
    recipe = [*RECIPE, "logger=[csv,tensorboard]", "trainer.val_check_interval=1.0", "save_every=100"]
    name = broken_off(5, *recipe)
    run_dir = go(*recipe, "resume=auto", name=name)
    assert rows_of_csv(run_dir) == rows_of_csv(whole(*recipe))
    assert tensorboard_events(run_dir) == tensorboard_events(whole(*recipe))


@pytest.mark.slow
def test_what_a_killed_process_left_half_written_is_removed(go, stopped):
    name = str(stopped(5, *RECIPE))
    run_dir = go(*RECIPE, "resume=auto", "trainer.max_epochs=1", name=name)
    (run_dir / "checkpoints" / "next.ckpt.1-a.partial").write_bytes(b"half")
    go(*RECIPE, "resume=auto", "trainer.max_epochs=2", name=name)
    assert not list(run_dir.rglob("*.partial"))
    assert not [path.name for path in run_dir.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_of_a_start_that_ended_before_its_first_checkpoint_nothing_is_kept(go, whole):
    run_dir = whole(*RECIPE).parent / "begun"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text((whole(*RECIPE) / "config.yaml").read_text())
    (run_dir / "metrics.jsonl").write_text('{"step": 0, "train/loss": 1.0}\n')
    assert_same_run(go(*RECIPE, "resume=auto", name="begun"), whole(*RECIPE))


def test_weights_alone_are_nothing_to_go_on_from(go, whole):
    with pytest.raises(DataError, match=r"best\.ckpt holds no state to go on from"):
        go(*RECIPE, f"resume={whole(*RECIPE)}/checkpoints/best.ckpt", name="of weights")


def test_a_checkpoint_of_an_earlier_version_is_told_of(go, whole, tmp_path):
    content = peek(whole(*RECIPE) / "checkpoints" / "last.ckpt")
    del content["resume_point"]["version"]
    write_sealed(content, tmp_path / "old.ckpt")
    with pytest.raises(DataError, match=r"old\.ckpt was written by another version of Permafrost; go on with that"):
        go(*RECIPE, f"resume={tmp_path}/old.ckpt", name="of an earlier version")


@pytest.mark.slow
def test_46_a_run_ends_when_its_time_is_over(go, monkeypatch):
    from lightning.pytorch.callbacks import timer

    clock = iter(range(0, 100_000, 60))
    monkeypatch.setattr(timer.time, "monotonic", lambda: float(next(clock)))
    run_dir = go(*RECIPE, "trainer.max_minutes=30", "save_every=100", name="out of time")
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "done"
    assert 0 < result["steps"] < 9


def held() -> tuple[int, int, int]:
    """By this process: open files, threads, and resident memory in kB."""
    threads, resident = re.findall(r"(?:Threads|VmRSS):\s+(\d+)", Path("/proc/self/status").read_text())[::-1]
    return len(list(Path("/proc/self/fd").iterdir())), int(threads), int(resident)


@pytest.mark.slow
def test_53_five_hundred_steps_with_saves_let_nothing_grow(go, monkeypatch):
    from permafrost.training.callbacks.resume_point import ResumePoint

    save, seen = ResumePoint._save, []

    def watched(self, trainer):
        save(self, trainer)
        seen.append(held())

    monkeypatch.setattr(ResumePoint, "_save", watched)
    many = ["trainer.max_steps=500", "trainer.max_epochs=1000", "save_every=5", "callbacks.early_stopping=null"]
    run_dir = go(*many, "store=on", name="soak")
    (files, threads, resident), *_, last = seen[len(seen) // 10 :]
    assert len(seen) > 100
    assert last[0] <= files
    assert last[1] <= threads
    assert last[2] < 1.05 * resident
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert not list(run_dir.rglob("*.partial"))


# The program, as a user types it


ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}


def program(*arguments: str, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, **streams)


def wait_for_steps(logs: Callable[[], list[Path]], count: int, process: subprocess.Popen) -> None:
    end = time.monotonic() + 120
    while not any(log.read_text().count("train/loss") >= count for log in logs()):
        assert time.monotonic() < end
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)


LONG = [*RECIPE, "trainer.max_epochs=400", "callbacks.early_stopping=null"]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_2_the_same_command_goes_on_in_the_same_directory(tiny, tmp_path, sent, code):
    """Which is named by the time, and found by its settings; W&B's run is the same, too."""

    def runs() -> list[Path]:
        return list(tmp_path.glob("outputs/*/*"))

    own = [*tiny, *LONG, "logger=wandb"]
    first = program(*own, "resume=auto", cwd=tmp_path)
    wait_for_steps(lambda: [log for run_dir in runs() for log in run_dir.glob("metrics.jsonl")], 12, first)
    first.send_signal(getattr(signal, sent))
    out, _ = first.communicate(timeout=60)
    assert first.returncode == code, out
    (run_dir,) = runs()
    newest, _ = newest_good(run_dir)  # next.ckpt, where it was killed between the two renames of a save
    epochs = peek(newest)["epoch"] + 2
    which = run_dir if sent == "SIGINT" else "auto"  # by name, too
    again = program(*own, f"resume={which}", f"trainer.max_epochs={epochs}", cwd=tmp_path)
    out, _ = again.communicate(timeout=120)
    assert again.returncode == 0, out
    assert f"resuming from {newest}" in out
    assert runs() == [run_dir]
    steps = [line["step"] for line in logged(run_dir) if "train/loss" in line]
    assert steps == list(range(len(steps)))
    identities = {path.name.split("-")[-1] for path in (run_dir / "wandb").glob("offline-run-*")}
    assert identities == {(run_dir / "wandb" / "run_id").read_text()}
    done = program(*own, "resume=auto", "trainer.max_steps=1", cwd=tmp_path)
    assert done.wait(timeout=120) == 0
    assert len(runs()) == 2  # one that has ended is not gone on with
    done.stdout.close()


def test_14_a_second_sigint_does_not_wait(go, monkeypatch):
    """Neither for the step nor for a save."""
    step, save, done = FineTuning.training_step, ResumePoint._save, []

    def interrupted(self, batch, batch_idx):
        if self.trainer.global_step == 2:
            done.append("asked")
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            done.append("went on")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(FineTuning, "training_step", interrupted)
    monkeypatch.setattr(ResumePoint, "_save", lambda self, trainer: done.append("saved") or save(self, trainer))
    with pytest.raises(Stopped) as raised:
        go(*RECIPE, name="asked twice")
    assert (raised.value.code, done[-1]) == (130, "asked")


@pytest.mark.slow
def test_a_sweep_goes_on_within_the_trial_that_broke_off(tiny, tmp_path):
    own = [
        "-m",
        *tiny,
        *RECIPE,
        "trainer.max_epochs=40",
        "seed=1,2",
        "resume=auto",
        f"hydra.sweep.dir={tmp_path}/sweep",
    ]
    first = program(*own, cwd=tmp_path)
    wait_for_steps(lambda: list(tmp_path.glob("sweep/1/metrics.jsonl")), 20, first)
    first.kill()
    first.communicate()
    again = program(*own, cwd=tmp_path)
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    assert "done before" in out
    assert f"resuming from {tmp_path}/sweep/1/checkpoints/last.ckpt" in out
    whole = program(*own[:-1], f"hydra.sweep.dir={tmp_path}/whole", cwd=tmp_path)
    assert whole.wait(timeout=300) == 0
    whole.stdout.close()
    assert logged(tmp_path / "sweep" / "1") == logged(tmp_path / "whole" / "1")


@pytest.mark.slow
def test_slurm_is_asked_to_start_the_job_again(tiny, tmp_path, monkeypatch):
    """By SIGUSR1 ahead of the job's end; the scheduler here is a script that writes down what it is asked."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setitem(ENVIRONMENT, "PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setitem(ENVIRONMENT, "SLURM_JOB_ID", "77")
    own = [*tiny, *LONG, "trainer=slurm", "trainer.accelerator=cpu", "trainer.max_epochs=400", "resume=auto"]
    own += [*RECIPE[:3], f"hydra.run.dir={tmp_path}/run"]
    process = program(*own, cwd=tmp_path)
    wait_for_steps(lambda: list(tmp_path.glob("run/metrics.jsonl")), 6, process)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, out
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert "job 77 is requeued" in out
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


@pytest.mark.parametrize("kind", ["a pickled call", "a name to build"])
def test_39_a_strangers_checkpoint_runs_nothing(go, tmp_path, kind):
    """Sealed as it should be, with what makes others run code: a pickled object, or a class in the hyper-parameters."""
    gift = tmp_path / "gift" / "checkpoints" / "last.ckpt"
    ran = tmp_path / "ran"
    content = {"state_dict": {}, "hyper_parameters": {"_instantiator": "os.system", "_class_path": "os.system"}}
    write_sealed(content | ({"extra": Payload(ran)} if kind == "a pickled call" else {}), gift)
    with pytest.raises(DataError, match=r"holds (more than tensors|no state)"):
        go(*RECIPE, f"resume={gift}", name=f"of {kind}")
    assert not ran.exists()


def secret_found(overrides: list[str], directory: Path) -> tuple[int, int]:
    """How many files a run leaves that had a secret in its environment, and how often they and its output have it."""
    canary = "canary-5d2f9c1b77e04a3f"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "HF_TOKEN"):
            patch.setitem(ENVIRONMENT, name, canary)
        own = ["logger=[wandb,csv,tensorboard]", "trainer.max_epochs=1", f"hydra.run.dir={directory}/run"]
        process = program(*overrides, *own, cwd=directory)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    files = [path.read_bytes() for path in (directory / "run").rglob("*") if path.is_file()]
    return len(files), sum(canary.encode() in content for content in [*files, out.encode()])


@pytest.mark.slow
def test_40_a_secret_is_nowhere_under_the_run_directory(tiny, tmp_path):
    searched, found = secret_found(tiny, tmp_path)
    assert searched > 15
    assert found == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["raises", "is killed"])
def test_18_a_loaders_process_that_fails_ends_the_run_with_its_reason(go, monkeypatch, way):
    from permafrost.training import datamodule

    padded = datamodule.padded_batch

    def fails(split, rows, loss_scale=1.0):
        if torch.utils.data.get_worker_info() is not None:
            if way == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(f"rows {rows.tolist()} are bad")
        return padded(split, rows, loss_scale)

    monkeypatch.setattr(datamodule, "padded_batch", fails)
    expected = r"rows \[\d+.*\] are bad" if way == "raises" else r"DataLoader worker .*data\.num_workers"
    with pytest.raises((ValueError, ResourceError), match=expected):
        go(*RECIPE, "data.num_workers=1", name=f"loader {way}")


@pytest.mark.slow
def test_a_run_killed_as_it_is_compressed_compresses_anew(go, monkeypatch):
    from permafrost.runs import compress

    recipe = [*RECIPE, "trainer.max_epochs=1", "compression=layer_drop", "compression.recover.epochs=1"]
    recipe += ["compression.recover.control=false"]

    def stop(*_):
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(compress, "compared", stop)
        with pytest.raises(Stopped):
            go(*recipe, name="compressing")
    run_dir = go(*recipe, "resume=must", name="compressing")
    (entry,) = json.loads((run_dir / "result.json").read_text())["compression"]
    assert entry["method"] == "layer_drop"
    assert not list((run_dir / "compressed").glob("*-recovery"))
