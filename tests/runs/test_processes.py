"""Several processes: the batches of one, the figures of one, and an end for all when one of them dies."""

import json
import os
import re
import signal
import socket
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
WATCHING = Path(__file__).with_name("watching")
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


def run(arguments: list[str], cwd: Path, **environment: str) -> None:
    process = start(arguments, cwd, **environment)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out


def watched(name: str, cwd: Path, **environment: str) -> dict[str, str]:
    """For `start`: what the processes do is written down as `name`, see watching/sitecustomize.py."""
    path = os.pathsep.join([str(WATCHING), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "WATCHED": str(cwd / name), **environment}


def notes(name: str, cwd: Path) -> list[list[dict]]:
    """Of each process, in their order."""
    files = sorted(cwd.glob(f"{name}-*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in files]


def of_processes(count: int) -> list[str]:
    return ["trainer=cpu"] if count == 1 else ["trainer=ddp_cpu", f"trainer.devices={count}"]


SHARED = ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"]


def losses(run_dir: Path) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in logged(run_dir) if "train/loss" in line}


def result(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())


def test_all_processes_have_one_directory_that_is_named_by_the_time(small, tmp_path):
    """One configuration, one log; what is said is said once."""
    process = start([*small, *of_processes(2)], tmp_path)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    (run_dir,) = tmp_path.glob("outputs/*/*")
    assert len(re.findall(rf"-> .*{run_dir.name}$", out, re.MULTILINE)) == 1
    assert [path.name for path in run_dir.parent.rglob("config.yaml")] == ["config.yaml"]
    steps = [line["step"] for line in logged(run_dir) if "train/loss" in line]
    assert steps == list(range(result(run_dir)["steps"]))
    assert not list(run_dir.rglob(".hydra"))


@pytest.mark.parametrize("count", [2, 4])
def test_metrics_count_every_row_once(small, tmp_path, count):
    for processes in (1, count):
        run([*small, *of_processes(processes), f"hydra.run.dir={tmp_path}/{processes}"], tmp_path)
    one, several = (result(tmp_path / str(processes)) for processes in (1, count))
    assert several["test"] == pytest.approx(one["test"], abs=1e-6)
    assert several["validation"] == pytest.approx(one["validation"], abs=1e-6)
    assert len((tmp_path / str(count) / "predictions.jsonl").read_text().splitlines()) == 15
    assert len(list((tmp_path / str(count)).glob("config.yaml"))) == 1


def steps_of(processes: list[list[dict]]) -> dict[int, tuple[list[int], float]]:
    """By step its rows, and its loss: the mean over the processes, as their gradients are averaged."""
    found: dict[int, list[dict]] = {}
    for note in (note for process in processes for note in process if "step" in note):
        found.setdefault(note["step"], []).append(note)
    return {
        step: (sorted(row for note in of_step for row in note["rows"]), sum(n["loss"] for n in of_step) / len(of_step))
        for step, of_step in sorted(found.items())
    }


def test_17_one_process_then_two_then_one(small, tmp_path):
    """Each step has the rows, in number and order, and the loss of one process throughout; so have the weights."""
    changing, own = tmp_path / "changing", [*small, "scheduler=constant", "scheduler.warmup=0"]
    for steps, processes in ((3, 1), (6, 2), (-1, 1)):
        part = [f"trainer.max_steps={steps}", *of_processes(processes), f"hydra.run.dir={changing}", "resume=auto"]
        run([*own, *part], tmp_path, **watched("changing-run", tmp_path))
    run([*own, f"hydra.run.dir={tmp_path}/constant"], tmp_path, **watched("constant-run", tmp_path))
    ours, theirs = (steps_of(notes(name, tmp_path)) for name in ("changing-run", "constant-run"))
    assert [of_process[-1] for of_process in notes("changing-run", tmp_path)] == [{"leaves_open": False}] * 2
    assert list(ours) == list(theirs) == list(range(result(changing)["steps"]))
    for step, (rows, loss) in theirs.items():
        assert ours[step] == (rows, pytest.approx(loss, abs=1e-6))
    ours, theirs = (
        peek(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (changing, tmp_path / "constant")
    )
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5)
    assert result(changing)["steps"] == result(tmp_path / "constant")["steps"]
    assert result(changing)["test"] == pytest.approx(result(tmp_path / "constant")["test"], abs=1e-6)


RECIPES = {"adamw": [], "all of it": ["freezing=none", "freezing.blocks=0"], "momentum": ["optimizer=momentum"]}
RECIPES |= {"muon": ["optimizer=muon"]}  # which multiplies matrices in bfloat16


@pytest.mark.parametrize("name", RECIPES)
def test_shares_of_what_is_trained_train_as_one_process(small, tmp_path, name):
    """The same losses, weights and scores; of weights and moments each of two processes has about half."""
    recipe, apart = RECIPES[name], 1e-3 if name == "muon" else 1e-5
    own = [*small, *recipe]
    run([*own, *of_processes(1), f"hydra.run.dir={tmp_path}/one"], tmp_path, **watched("one", tmp_path))
    run([*own, *SHARED, f"hydra.run.dir={tmp_path}/two"], tmp_path, **watched("two", tmp_path, SHARES="1"))
    ours, theirs = (steps_of(notes(name, tmp_path)) for name in ("two", "one"))
    assert list(ours) == list(theirs)
    for step, (rows, loss) in theirs.items():
        assert ours[step] == (rows, pytest.approx(loss, abs=apart))
    found, expected = (peek(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("two", "one"))
    assert_alike(found["state_dict"], expected["state_dict"], apart)
    assert_alike(found["optimizer_states"][0]["state"], expected["optimizer_states"][0]["state"], apart)
    assert result(tmp_path / "two")["test"] == pytest.approx(result(tmp_path / "one")["test"], abs=apart)
    assert result(tmp_path / "two")["parameters"] == result(tmp_path / "one")["parameters"]
    trained = result(tmp_path / "one")["parameters"]["trainable"]
    shares = [next(note for note in process if "kept" in note) for process in notes("two", tmp_path)]
    assert sum(share["kept"] for share in shares) == trained
    assert max(share["kept"] for share in shares) < 0.52 * trained
    if name == "adamw":  # which keeps two numbers of each
        assert sum(share["moments"] for share in shares) == 2 * trained


def assert_alike(found, expected, apart: float) -> None:
    """Nested mappings of tensors, to rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_alike(found[name], value, apart)
        else:
            torch.testing.assert_close(found[name], value, rtol=0, atol=apart)


def test_17_one_process_then_shares_then_copies_then_shares(small, tmp_path):
    """Checkpoints are the same whoever writes them."""
    own = [*small, "scheduler=constant", "scheduler.warmup=0"]
    for steps, processes in ((3, of_processes(1)), (5, SHARED), (7, of_processes(2)), (-1, SHARED)):
        part = [f"trainer.max_steps={steps}", *processes, f"hydra.run.dir={tmp_path}/changing", "resume=auto"]
        run([*own, *part], tmp_path, **watched("changing-run", tmp_path))
    run([*own, *of_processes(1), f"hydra.run.dir={tmp_path}/constant"], tmp_path, **watched("constant-run", tmp_path))
    ours, theirs = (steps_of(notes(name, tmp_path)) for name in ("changing-run", "constant-run"))
    assert list(ours) == list(theirs)
    for step, (rows, loss) in theirs.items():
        assert ours[step] == (rows, pytest.approx(loss, abs=1e-5))
    assert result(tmp_path / "changing")["test"] == pytest.approx(result(tmp_path / "constant")["test"], abs=1e-5)


@pytest.mark.parametrize("processes", [of_processes(2), SHARED], ids=["copies", "shares"])
def test_19_a_step_that_one_process_spoils_is_left_out_by_both(small, tmp_path, processes):
    """The rows named are those of the one that did; the weights stay alike."""
    own = [*small, *processes, "callbacks.instability.max_skips=2", f"hydra.run.dir={tmp_path}/run"]
    process = start(own, tmp_path, **watched("spoiled", tmp_path, SPOILS="1:4"))
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    first, second = notes("spoiled", tmp_path)
    assert out.count("step 5: loss nan, gradient nan: left out, 1 in a row") == 1
    (told,) = (line for line in out.splitlines() if "in a row" in line)
    named = re.findall(r"train\.csv:(\d+)", told)
    rows = next(note["rows"] for note in second if note.get("step") == 4)
    assert named == [str(row + 2) for row in rows[:5]]  # below the header, counted from 1
    if processes != SHARED:
        sums = [[note["weights"] for note in process if "weights" in note] for process in (first, second)]
        assert sums[0] == sums[1]
        assert sums[0][4] == sums[0][5] != sums[0][6]


@pytest.mark.parametrize("blocks", [0, 1])
def test_frozen_parameters_cost_no_communication(small, tmp_path, blocks):
    """A step sums the gradients of what is trained; at the start of training and of scoring only that is sent."""
    run(
        [*small, *of_processes(2), "freezing=none", f"freezing.blocks={blocks}", f"hydra.run.dir={tmp_path}/run"],
        tmp_path,
        **watched("both", tmp_path),
    )
    counted = result(tmp_path / "run")["parameters"]
    assert (counted["trainable"] < counted["total"]) is (blocks > 0)
    for process in notes("both", tmp_path):
        steps = sum("step" in note for note in process)
        assert steps == result(tmp_path / "run")["steps"]
        assert sum(note.get("summed", 0) for note in process) == steps * counted["trainable"]
        assert {note["sent"] for note in process if "sent" in note} == {counted["trainable"]}


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


def was_started_as_second(process: int) -> bool:
    try:
        return b"LOCAL_RANK=1" in Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False


@pytest.fixture
def training(small, tmp_path):
    """Two processes that train, each with one that loads: the first, and the one it has started."""
    own = [*small, *LONG, "data.num_workers=1", *of_processes(2), f"hydra.run.dir={tmp_path}/run"]
    process = start(own, tmp_path, **watched("training", tmp_path))
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: process.poll() is not None or (log.exists() and log.read_text().count("train/loss") > 5))
    assert process.poll() is None, process.stdout.read()
    second = next(child for child in children(process.pid) if was_started_as_second(child))
    yield process, second
    for number in (process.pid, second):
        if is_alive(number):
            os.kill(number, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("dies", ["first", "second"])
def test_15_a_dead_process_ends_the_whole_job(training, dies):
    """Those that load for it, too."""
    first, second = training
    begun_by_it = children(first.pid)
    os.kill(first.pid if dies == "first" else second, signal.SIGKILL)
    begun = time.monotonic()
    assert first.wait(timeout=TO_END_S) != 0
    wait_for(lambda: not any(map(is_alive, begun_by_it)), TO_END_S - (time.monotonic() - begun))


@pytest.mark.parametrize("fails", [0, 1])
def test_15_an_error_in_one_process_ends_the_whole_job(small, tmp_path, fails):
    """Its output ends with it: no process is left that could write there."""
    own = [*small, *LONG, *of_processes(2), f"hydra.run.dir={tmp_path}/run"]
    job = start(own, tmp_path, **watched("failing", tmp_path, RAISES=f"{fails}:4"))
    out, _ = job.communicate(timeout=240)
    (raised,) = (note["raised"] for note in notes("failing", tmp_path)[fails] if "raised" in note)
    assert time.time() - raised < TO_END_S
    assert job.returncode not in (0, None)
    assert "RuntimeError: planted" in out
    assert notes("failing", tmp_path)[fails][-1] == {"leaves_open": False}


@pytest.mark.parametrize("asked", ["first", "second"])
def test_16_a_signal_to_one_process_stops_all_with_one_checkpoint(training, small, tmp_path, asked):
    first, second = training
    os.kill(first.pid if asked == "first" else second, signal.SIGTERM)
    out, _ = first.communicate(timeout=TO_END_S)
    assert first.returncode == 143, out
    wait_for(lambda: not is_alive(second), 10)
    assert [of_process[-1] for of_process in notes("training", tmp_path)] == [{"leaves_open": False}] * 2
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


@pytest.mark.parametrize("processes", [of_processes(2), SHARED], ids=["copies", "shares"])
def test_a_killed_run_of_two_goes_on_to_the_last_bit(small, tmp_path, processes):
    """Dropout on: each process has random numbers of its own."""
    options = [*small, "model.dropout=0.3", *processes, "trainer.max_epochs=3", "save_every=1"]
    run([*options, f"hydra.run.dir={tmp_path}/whole"], tmp_path, **watched("whole-run", tmp_path))
    killed = [*options, f"hydra.run.dir={tmp_path}/killed"]
    process = start(killed, tmp_path, **watched("killed-run", tmp_path, KILLS="0:7"))
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    run([*killed, "resume=must"], tmp_path, **watched("again", tmp_path))
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def on_two_nodes(own: list[str], cwd: Path) -> list[subprocess.Popen]:
    """Both on this machine, one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    own = [*own, "trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    return [
        subprocess.Popen(
            [*command, f"--node-rank={rank}", str(ROOT / "train.py"), *own],
            **{"cwd": cwd, "env": ENVIRONMENT, "text": True},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT},
        )
        for rank in range(2)
    ]


def test_torchrun_on_two_nodes(small, tmp_path):
    nodes = on_two_nodes([*small, f"hydra.run.dir={tmp_path}/two"], tmp_path)
    outs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outs
    run([*small, *of_processes(1), f"hydra.run.dir={tmp_path}/one"], tmp_path)
    one, two = (result(tmp_path / name) for name in ("one", "two"))
    assert two["test"] == pytest.approx(one["test"], abs=1e-6)
    assert two["steps"] == one["steps"]
    assert len((tmp_path / "two" / "predictions.jsonl").read_text().splitlines()) == 15
    assert len(list((tmp_path / "two").glob("config.yaml"))) == 1


def test_torchrun_needs_one_directory_for_all(small, tmp_path):
    nodes = on_two_nodes(small, tmp_path)
    outs = [node.communicate(timeout=300)[0] for node in nodes]
    assert all(node.returncode for node in nodes)
    assert "give all of them one: hydra.run.dir=outputs/NAME" in outs[0]


@pytest.mark.parametrize("dies", [0, 1])
def test_15_a_dead_process_ends_both_nodes(small, tmp_path, dies):
    nodes = on_two_nodes([*small, *LONG, f"hydra.run.dir={tmp_path}/run"], tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("train/loss") > 5)
    workers = [children(node.pid) for node in nodes]
    os.kill(workers[dies][0], signal.SIGKILL)
    begun = time.monotonic()
    outs = [node.communicate(timeout=TO_END_S)[0] for node in nodes]
    assert time.monotonic() - begun < TO_END_S
    assert all(node.returncode for node in nodes), outs
    assert not any(is_alive(worker) for of_node in workers for worker in of_node)


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
