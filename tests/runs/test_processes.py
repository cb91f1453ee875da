"""Several processes: the batches of one, the figures of one, and an end for all when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from permafrost.training.sealed import peek
from tests.runs.conftest import ROOT
from tests.runs.test_resume import logged

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
LONG = ["trainer.max_epochs=2000", "callbacks.early_stopping=null", "trainer.log_every_n_steps=1"]
TO_END_S = 60


@pytest.fixture
def small(tiny, data_dir, tmp_path) -> list[str]:
    """On a test set of 15 rows, which neither 2 nor 4 divides."""
    lines = (data_dir / "test.csv").read_text().splitlines(keepends=True)
    (tmp_path / "ragged.csv").write_text("".join(lines[:16]))
    own = [f"data.test={tmp_path}/ragged.csv", f"store.dir={tmp_path}/activations", "store=on"]
    return [*tiny, *own, "model.dropout=0", "trainer.max_epochs=2", "trainer.log_every_n_steps=1"]


def start(arguments: list[str], cwd: Path, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        **{"cwd": cwd, "env": ENVIRONMENT | environment, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
    )


def run(arguments: list[str], cwd: Path) -> None:
    process = start(arguments, cwd)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out


def of_processes(count: int) -> list[str]:
    return ["trainer=cpu"] if count == 1 else ["trainer=ddp_cpu", f"trainer.devices={count}"]


def losses(run_dir: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in logged(run_dir) if "train/loss" in line}


def result(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())


@pytest.mark.parametrize("count", [2, 4])
def test_metrics_count_every_row_once(small, tmp_path, count):
    for processes in (1, count):
        run([*small, *of_processes(processes), f"hydra.run.dir={tmp_path}/{processes}"], tmp_path)
    one, several = (result(tmp_path / str(processes)) for processes in (1, count))
    assert several["test"] == pytest.approx(one["test"], abs=1e-6)
    assert several["validation"] == pytest.approx(one["validation"], abs=1e-6)
    assert len((tmp_path / str(count) / "predictions.jsonl").read_text().splitlines()) == 15
    assert len(list((tmp_path / str(count)).glob("config.yaml"))) == 1


def test_17_one_process_then_two_then_one(small, tmp_path):
    """The trained weights after each step are those of one process throughout, to rounding."""
    changing = tmp_path / "changing"
    for steps, processes in ((3, 1), (6, 2), (-1, 1)):
        own = [f"trainer.max_steps={steps}", *of_processes(processes), f"hydra.run.dir={changing}"]
        run([*small, *own, "scheduler=constant", "scheduler.warmup=0", "resume=auto"], tmp_path)
    run([*small, "scheduler=constant", "scheduler.warmup=0", f"hydra.run.dir={tmp_path}/constant"], tmp_path)
    ours, theirs = (
        peek(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (changing, tmp_path / "constant")
    )
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5)
    assert result(changing)["steps"] == result(tmp_path / "constant")["steps"]
    assert result(changing)["test"] == pytest.approx(result(tmp_path / "constant")["test"], abs=1e-6)


def children(process: int) -> list[int]:
    """Of a process, at any depth."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found + [deeper for child in found for deeper in children(child)]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


@pytest.fixture
def training(small, tmp_path):
    """Two processes that train: the first, and the one it has started."""
    process = start([*small, *LONG, *of_processes(2), f"hydra.run.dir={tmp_path}/run"], tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (log.exists() and log.read_text().count("train/loss") > 5))
    assert process.poll() is None, process.stdout.read()
    (second,) = [child for child in children(process.pid) if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    yield process, second
    for number in (process.pid, second):
        if is_alive(number):
            os.kill(number, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("dies", ["first", "second"])
def test_15_a_dead_process_ends_the_whole_job(training, dies):
    first, second = training
    os.kill(first.pid if dies == "first" else second, signal.SIGKILL)
    begun = time.monotonic()
    assert first.wait(timeout=TO_END_S) != 0
    wait_for(lambda: not is_alive(second), TO_END_S - (time.monotonic() - begun))


@pytest.mark.parametrize("asked", ["first", "second"])
def test_16_a_signal_to_one_process_stops_all_with_one_checkpoint(training, small, tmp_path, asked):
    first, second = training
    os.kill(first.pid if asked == "first" else second, signal.SIGTERM)
    out, _ = first.communicate(timeout=TO_END_S)
    assert first.returncode == 143, out
    wait_for(lambda: not is_alive(second), 10)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} >= {"last.ckpt"}
    step = peek(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"]
    run(
        [
            *small,
            *LONG,
            *of_processes(2),
            f"trainer.max_steps={step + 3}",
            f"hydra.run.dir={tmp_path}/run",
            "resume=must",
        ],
        tmp_path,
    )
    assert result(tmp_path / "run")["steps"] == step + 3
    assert sorted(losses(tmp_path / "run")) == list(range(step + 3))


def test_a_killed_run_of_two_goes_on_to_the_last_bit(small, tmp_path):
    """Dropout on: each process has random numbers of its own."""
    options = [*small, "model.dropout=0.3", *of_processes(2), "trainer.max_epochs=3", "save_every=1"]
    run([*options, f"hydra.run.dir={tmp_path}/whole"], tmp_path)
    process = start([*options, f"hydra.run.dir={tmp_path}/killed"], tmp_path)
    log = tmp_path / "killed" / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (log.exists() and log.read_text().count("train/loss") > 4))
    process.kill()
    process.communicate()
    run([*options, "resume=must", f"hydra.run.dir={tmp_path}/killed"], tmp_path)
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


@pytest.mark.parametrize("run_dir", ["given", "by the time"])
def test_torchrun_on_two_nodes(small, tmp_path, run_dir):
    """Both on this machine, one process each; without a directory for both they are refused."""
    own = [*small, "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    if run_dir == "given":
        own.append(f"hydra.run.dir={tmp_path}/run")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        "--master-addr=127.0.0.1",
    ]
    nodes = [
        subprocess.Popen(
            [*command, "--master-port=29511", f"--node-rank={rank}", str(ROOT / "train.py"), *own],
            **{"cwd": tmp_path, "env": ENVIRONMENT, "text": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        )
        for rank in range(2)
    ]
    outs = [node.communicate(timeout=300)[0] for node in nodes]
    if run_dir == "given":
        assert [node.returncode for node in nodes] == [0, 0], outs
        assert result(tmp_path / "run")["status"] == "done"
        assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 15
    else:
        assert all(node.returncode for node in nodes)
        assert "give all of them one: hydra.run.dir=outputs/NAME" in outs[0]


def test_45_two_runs_of_one_directory(small, tmp_path):
    """The second is refused while the first trains, and goes on with it when that was killed."""
    own = [*small, *LONG, f"hydra.run.dir={tmp_path}/run", "resume=auto"]
    first = start(own, tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and "validation/loss" in log.read_text())
    second = start(own, tmp_path)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"is another run's, which is at work: process {first.pid} on" in out
    first.kill()
    first.communicate()
    epoch = peek(tmp_path / "run" / "checkpoints" / "last.ckpt")["epoch"]
    run([*own, f"trainer.max_epochs={epoch + 1}"], tmp_path)
    assert result(tmp_path / "run")["epochs"] == epoch + 1
