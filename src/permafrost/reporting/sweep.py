"""A sweep's trials as a table, best first: on screen, and beside them as sweep.csv and sweep.md."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from permafrost.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class Trial:
    directory: str
    overrides: Mapping[str, str]
    result: Mapping[str, Any]  # its result.json; of a failed trial status, exit_code and error

    @property
    def failed(self) -> bool:
        return self.result["status"] != "done"


class SweepTable(Callback):
    """Collects the trials as Hydra ends them; the sweep ends with the exit code of its first failure."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.monitor, self.metrics = "", {}  # type: tuple[str, Mapping[str, str]]

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        from permafrost.tasks.binding import metrics_of

        job = config.hydra
        if job.mode.name != "MULTIRUN":
            return
        self.monitor, self.metrics = config.task.monitor, metrics_of(config.task.name)
        directory = Path(job.runtime.output_dir)
        self.trials.append(read_trial(directory, job.overrides.task))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not self.trials:
            return
        ordered = best_first(self.trials, self.monitor, self.metrics[self.monitor])
        directory = Path(config.hydra.sweep.dir)
        write_tables(ordered, self.monitor, directory)
        failed = [trial for trial in self.trials if trial.failed]
        if failed:
            raise SystemExit(failed[0].result.get("exit_code", TrainingError.exit_code))


def read_trial(directory: Path, overrides: Sequence[str]) -> Trial:
    pairs = dict(override.lstrip("+").split("=", 1) for override in overrides)
    path = directory / "result.json"
    lost = {"status": "failed", "error": "the trial left no result.json"}
    result = json.loads(path.read_text("utf-8")) if path.exists() else lost
    return Trial(directory=directory.name, overrides=pairs, result=result)


def best_first(trials: Sequence[Trial], monitor: str, mode: str) -> list[Trial]:
    """By the monitored metric on validation, failures last."""
    done = [trial for trial in trials if not trial.failed]
    done.sort(key=lambda trial: trial.result["validation"][monitor], reverse=mode == "max")
    return done + [trial for trial in trials if trial.failed]


def columns_and_rows(trials: Sequence[Trial], monitor: str) -> tuple[list[str], list[list[str]]]:
    """Only the overrides that differ between trials have a column."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.overrides))
    varied = [key for key in keys if len({trial.overrides.get(key) for trial in trials}) > 1] or keys
    header = ["trial", *varied, f"validation {monitor}", f"test {monitor}", "epochs", "seconds", "status"]
    return header, [
        [trial.directory, *(trial.overrides.get(key, "") for key in varied), *_outcome(trial, monitor)]
        for trial in trials
    ]


def write_tables(trials: Sequence[Trial], monitor: str, directory: Path) -> None:
    """sweep.csv, sweep.md, the same table on screen, and a plot where the frozen depth was swept."""
    from rich.console import Console
    from rich.table import Table

    header, rows = columns_and_rows(trials, monitor)
    with (directory / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    lines = [header, ["---"] * len(header), *rows]
    markdown = "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
    (directory / "sweep.md").write_text(markdown + "\n", "utf-8")
    table = Table(*header, title=f"{len(trials)} trials in {directory}, best first")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    plot_depths(trials, monitor, directory)


def plot_depths(trials: Sequence[Trial], monitor: str, directory: Path) -> None:
    """The freeze curve: the best validation score at each frozen depth."""
    scores: dict[int, list[float]] = {}
    for trial in trials:
        if not trial.failed:
            scores.setdefault(trial.result["frozen_blocks"], []).append(trial.result["validation"][monitor])
    if len(scores) > 2:
        from permafrost.reporting.plots import freeze_curve

        freeze_curve(scores, monitor, directory / "freeze_curve.png")


def _outcome(trial: Trial, monitor: str) -> list[str]:
    if trial.failed:
        return ["", "", "", "", f"failed: {trial.result.get('error', '')}".splitlines()[0]]
    result = trial.result
    scores = [f"{result[stage][monitor]:.4f}" for stage in ("validation", "test")]
    return [*scores, str(result["epochs"]), f"{result['seconds']['total']:.0f}", "done"]
