"""Runs that are killed, and how they go on."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faults.tiny_runs import SAVE_EVERY, STAGES, STEPS, begin, begun, run_whole, spent_s, stage, step_at, tiny_overrides

KILLS = 200
OF_TIME = ("train/tokens_per_second", "train/epoch_seconds")


def kills(root: Path) -> list[str]:
    """At each step, at random moments over the whole of a run, and at random ones within each stage."""
    overrides = tiny_overrides(root)
    whole = root / "whole"
    seconds = run_whole(overrides, whole)
    rng, outcomes = random.Random(0), Counter[str]()
    times = list(begun)
    mean_s = [spent / max(1, count) for spent, count in zip(spent_s, times, strict=True)]
    places, lost = Counter[str](), list[int]()
    number = 0
    while places.total() < STEPS + KILLS:
        aim = Aim(step=number + 1)
        if number >= STEPS and (place := number % len(STAGES)):
            aim = Aim(stage=place, entry=rng.randint(1, times[place]), after_s=rng.uniform(0, mean_s[place]))
        elif number >= STEPS:
            aim = Aim(after_s=rng.uniform(0, seconds))
        outcome = killed_and_resumed(root, overrides, whole, number, aim)
        outcomes["identical" if outcome["identical"] else "different"] += outcome["killed"]
        outcomes["with something left behind"] += bool(outcome["left"])
        places[outcome["stage"]] += outcome["killed"]  # and not where the run had ended before
        lost.append(outcome["lost"])
        print(number, outcome, flush=True)
        number += 1
    return [
        f"A run of {STEPS} steps (dropout and shuffling on, two batches a step, `save_every={SAVE_EVERY}`, "
        f"{seconds:.1f} s) is killed by SIGKILL at each step, and {KILLS} runs at random moments, a fifth of them over "
        "the whole run and a fifth within each of the stages below; each then goes on with `resume=auto`.",
        "",
        "| | |",
        "|---|---|",
        f"| runs killed | {places.total()} |",
        f"| other runs, that had ended as the kill came | {number - places.total()} |",
        *(f"| killed within {place} | {places[place]} |" for place in STAGES),
        f"| resumed, with losses and final weights identical to the last bit | {outcomes['identical']} |",
        f"| resumed, and different or failed | {outcomes['different']} |",
        f"| steps begun and done again, at most | {max(lost)} |",
        f"| runs with a temporary file left | {outcomes['with something left behind']} |",
    ]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """When a run is killed: as it comes to `step`, or for the `entry`-th time to `stage`, or at its start; and so many
    seconds later."""

    step: int = 0
    stage: int = 0
    entry: int = 0
    after_s: float = 0.0

    def is_near(self) -> bool:
        return step_at.value >= self.step and begun[self.stage] >= self.entry


def killed_and_resumed(root: Path, overrides: Sequence[str], whole: Path, number: int, aim: Aim) -> dict[str, Any]:
    run_dir = root / f"run-{number}"
    own = [*overrides, f"store.dir={run_dir}.store", "resume=auto"]
    process = begin(own, run_dir)
    while process.is_alive() and not aim.is_near():
        time.sleep(0.0002)
    process.join(aim.after_s)
    process.kill()
    process.join()
    at, begun_step = STAGES[stage.value], step_at.value
    saved = saved_step(run_dir)
    again = begin(own, run_dir)
    again.join()
    outcome = {
        "killed": process.exitcode == -signal.SIGKILL,
        "stage": at,
        "step": begun_step,
        "lost": max(0, begun_step - saved),
        "identical": again.exitcode == 0 and same(run_dir, whole),
        "left": left_behind(root, run_dir),
    }
    for path in (run_dir, Path(f"{run_dir}.store")):
        shutil.rmtree(path, ignore_errors=True)
    return outcome


def saved_step(run_dir: Path) -> int:
    from permafrost.training.checkpoints import newest_good
    from permafrost.training.sealed import peek

    found, _ = newest_good(run_dir)
    return peek(found)["global_step"] if found else 0


def left_behind(root: Path, run_dir: Path) -> list[str]:
    """What a run that has ended well should not have in its directory, its store and the cache."""
    places = (run_dir, Path(f"{run_dir}.store"), root / "cache")
    found = [path for place in places for path in place.rglob("*.partial")]
    found += [run_dir / "checkpoints" / "next.ckpt", run_dir / ".lock", run_dir / ".running.json"]
    return [str(path) for path in found if path.exists()]


def same(run_dir: Path, whole: Path) -> bool:
    ours, theirs = weights(run_dir), weights(whole)
    equal = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    return equal and logged(run_dir) == logged(whole)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """Of the model that is exported, which is the best, and those that training ended with."""
    from safetensors.torch import load_file

    from permafrost.training.sealed import read_sealed

    exported = load_file(run_dir / "model" / "model.safetensors")
    return exported | read_sealed(run_dir / "checkpoints" / "last.ckpt")["state_dict"]


def logged(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in OF_TIME} for line in lines]
