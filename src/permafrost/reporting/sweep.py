"""A sweep's trials as a table, best first: on screen, and beside them as sweep.csv and sweep.md; over several seeds
also what each setting reaches, as seeds.md.
"""

import atexit
import csv
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from permafrost.data.problems import LEAKS_ALLOWED
from permafrost.errors import ConfigError, PermafrostError
from permafrost.reporting.seeds import over_seeds, varied_keys
from permafrost.storage.locks import sole_run

TRIALS = "trials.jsonl"  # in the sweep's directory: one line per trial, in the order in which they ended


@dataclass(frozen=True, kw_only=True)
class Trial:
    number: int
    directory: str  # within the sweep's
    overrides: Mapping[str, str]
    monitor: str
    mode: str  # of the monitored metric: max or min is best
    result: Mapping[str, Any]  # its result.json; of a failed trial status, exit_code and error

    @property
    def failed(self) -> bool:
        return self.result["status"] != "done"

    def score(self, stage: str, metric: str) -> float | None:
        """None where the trial failed, or is one of another task."""
        return self.result.get(stage, {}).get(metric)


class SweepTable(Callback):
    """Keeps the directory of the sweep for it, says where it is, and ends it with its table and the exit code of its
    first failure."""

    def __init__(self) -> None:
        self.held = ExitStack()

    def __getstate__(self) -> dict[str, Any]:
        """Workers get a copy of it, and have no part in the lock."""
        return {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        workers = config.hydra.launcher.get("n_jobs", 1)
        if workers == 0:
            print("error: hydra.launcher.n_jobs=0: give 1 or more, or -1 for one per core", file=sys.stderr)
            raise SystemExit(ConfigError.exit_code)
        if workers != 1:  # at the default action the workers would train on
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        directory = Path(config.hydra.sweep.dir)
        self.keep(directory)
        (directory / TRIALS).unlink(missing_ok=True)
        print(
            f"sweep in {directory}; if it breaks off, the same command with hydra.sweep.dir={directory} does the rest"
        )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        with self.held:
            trials = read_trials(directory)
            write_tables(best_first(trials), directory)
        if failed := [trial for trial in trials if trial.failed]:
            raise SystemExit(failed[0].result["exit_code"])

    def keep(self, directory: Path) -> None:
        """Until the end of the sweep, or of the program where it breaks off."""
        try:
            self.held.enter_context(sole_run(directory, key="hydra.sweep.dir"))
        except PermafrostError as error:  # Hydra would make a warning of it, and begin
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        atexit.register(self.held.close)


def record_trial(trial: Trial, directory: Path) -> None:
    """One write of one line, so that trials which end in different processes at once do not mix theirs."""
    with (directory / TRIALS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trial)) + "\n")


def read_trials(directory: Path) -> list[Trial]:
    lines = (directory / TRIALS).read_text("utf-8").splitlines()
    return sorted((Trial(**json.loads(line)) for line in lines), key=lambda trial: trial.number)


def best_first(trials: Sequence[Trial]) -> list[Trial]:
    """By the metric that the first monitors, on validation; then trials of other tasks, then failures."""
    first = min(trials, key=lambda trial: trial.failed)
    sign = -1 if first.mode == "max" else 1

    def rank(trial: Trial) -> tuple[bool, bool, float]:
        score = trial.score("validation", first.monitor)
        return trial.failed, score is None, sign * (score or 0.0)

    return sorted(trials, key=rank)


def columns_and_rows(trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    """Only the overrides that differ between trials have a column."""
    monitor = trials[0].monitor
    varied = varied_keys(trials)
    header = ["trial", *varied, f"validation {monitor}", f"test {monitor}", "epochs", "seconds", "status"]
    return header, [
        [trial.directory, *(trial.overrides.get(key, "") for key in varied), *_outcome(trial, monitor)]
        for trial in trials
    ]


def write_tables(trials: Sequence[Trial], directory: Path) -> None:
    """sweep.csv, sweep.md, seeds.md, their tables on screen, and a plot where the frozen depth was swept."""
    header, rows = columns_and_rows(trials)
    with (directory / "sweep.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    leaks = f"\n{LEAKS_ALLOWED}\n" if any(trial.result.get("allow_leaks") for trial in trials) else ""
    (directory / "sweep.md").write_text(markdown(header, rows) + leaks, "utf-8")
    print_table(header, rows, f"{len(trials)} trials in {directory}, best first")
    print(leaks, end="")
    header, rows = over_seeds(trials)
    if rows:
        (directory / "seeds.md").write_text(markdown(header, rows) + leaks, "utf-8")
        print_table(header, rows, "mean over the seeds ± standard deviation (smallest to largest)")
    plot_depths(trials, directory)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |\n" for line in lines)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """One line per trial, and what the failed ones said below it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in header:
        table.add_column(name, overflow="fold")  # names are for reading to their end
    for row in rows:
        table.add_row(*row[:-1], row[-1].split(":")[0])
    Console().print(table)
    for row in rows:
        if ":" in row[-1]:
            print(f"trial {row[0]} {row[-1]}")


def plot_depths(trials: Sequence[Trial], directory: Path) -> None:
    """The freeze curve: the best validation score at each frozen depth."""
    monitor, modes, scores = trials[0].monitor, set[str](), dict[int, list[float]]()
    for trial in trials:
        score = trial.score("validation", monitor)
        if score is not None:
            modes.add(trial.mode)
            scores.setdefault(trial.result["frozen_blocks"], []).append(score)
    if len(scores) > 2:
        from permafrost.reporting.plots import freeze_curve

        freeze_curve(scores, monitor, directory / "freeze_curve.png", higher_is_better="min" not in modes)


def _outcome(trial: Trial, monitor: str) -> list[str]:
    if trial.failed:
        return ["", "", "", "", f"failed: {trial.result.get('error', '')}".splitlines()[0]]
    scores = [trial.score(stage, monitor) for stage in ("validation", "test")]
    cells = ["" if score is None else f"{score:.4f}" for score in scores]
    return [*cells, str(trial.result["epochs"]), f"{trial.result['seconds']['total']:.0f}", "done"]
