"""Validation accuracy by frozen depth: run by `python benchmarks/run.py freeze_curve`."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from kept import cleared, days
from stated import RESULTS, ROOT, hardware, publish

from permafrost.reporting.plots import freeze_curve as plot


def freeze_curve() -> None:
    """Over learning rates and poolings; each core sweeps some of the depths."""
    grids = [("last", "1e-3"), ("mean", "1e-3")]
    queues = [["0", "2", "5"], ["1", "3", "4", "6"]]  # about equal work
    sweeps = [sweep_of(depths, *grid) for depths in queues for grid in grids]
    measured_on = days([cleared(sweep["dir"], command=sweep["command"]) for sweep in sweeps])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    waiting = [[sweep for sweep in sweeps if sweep["depths"] == depths] for depths in queues]
    while any(waiting):
        running = [subprocess.Popen(queue.pop(0)["command"], cwd=ROOT, env=environment) for queue in waiting if queue]
        if any([process.wait() for process in running]):
            raise SystemExit("a trial failed")
    trials = [
        json.loads(path.read_text()) | {"config": chosen(path)}
        for s in sweeps
        for path in s["dir"].glob("*/result.json")
    ]
    write(trials, measured_on)


def sweep_of(depths: Sequence[str], pooling: str, rates: str) -> dict:
    directory = ROOT / "outputs" / "benchmarks" / f"freeze_curve-{pooling}-{'-'.join(depths)}"
    options = [f"freezing.blocks={','.join(depths)}", f"optimizer.lr={rates}", f"head.pooling={pooling}"]
    command = [sys.executable, "train.py", "-m", "experiment=freeze_curve", *options, f"hydra.sweep.dir={directory}"]
    return {"depths": list(depths), "dir": directory, "command": command}


def chosen(result: Path) -> dict:
    """The swept values of a trial, from its config.yaml."""
    config = yaml.safe_load(result.with_name("config.yaml").read_text())
    return {"lr": config["optimizer"]["lr"], "pooling": config["head"]["pooling"]}


def write(trials: Sequence[dict], measured_on: str) -> None:
    best: dict[tuple[int, str], dict] = {}
    scores: dict[int, list[float]] = {}
    for trial in sorted(trials, key=lambda trial: trial["validation"]["accuracy"]):
        best[trial["frozen_blocks"], trial["config"]["pooling"]] = trial
        scores.setdefault(trial["frozen_blocks"], []).append(trial["validation"]["accuracy"])
    plot(scores, "accuracy", RESULTS / "freeze_curve.png")
    lines = ["# Accuracy by frozen depth, `data=pydocs model=mini`", ""]
    lines += [f"{hardware()}, one for each of two runs at a time; {measured_on}; seed 0.", ""]
    lines += ["`python benchmarks/run.py freeze_curve`. Chosen on validation; test is shown and not looked at.", ""]
    lines += ["| frozen blocks | head | validation | learning rate | epochs | test | fit, s |", "|---" * 7 + "|"]
    for depth, pooling in sorted(best):
        trial = best[depth, pooling]
        validation, test = (f"{trial[stage]['accuracy']:.4f}" for stage in ("validation", "test"))
        rate, epochs, seconds = f"{trial['config']['lr']:g}", str(trial["epochs"]), f"{trial['seconds']['fit']:.0f}"
        lines.append("| " + " | ".join([str(depth), pooling, validation, rate, epochs, test, seconds]) + " |")
    lines += ["", "![freeze curve](freeze_curve.png)"]
    figures = {str(depth): max(of_depth) for depth, of_depth in scores.items()}
    publish("freeze_curve", lines, figures, kept={"trials": trials}, measured={"date": measured_on})
