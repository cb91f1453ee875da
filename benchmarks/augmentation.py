"""What changed copies of few rows are worth: run by `python benchmarks/run.py augmentation`."""

import subprocess
import sys
from collections.abc import Mapping, Sequence

from kept import cleared
from stated import ROOT, SHARED, hardware, publish

from permafrost.reporting.seeds import by_setting, differences
from permafrost.reporting.sweep import read_trials


def augmentation() -> None:
    """The sweep's own table over its seeds, and which of its differences all seeds agree on."""
    if not SHARED.is_dir():
        print("augmentation: left out, its data are not beside this clone")
        return
    line = "-m experiment=augmentation_study"
    directory = ROOT / "outputs" / "benchmarks" / "augmentation"
    measured = cleared(directory, command=line)  # a stopped study goes on where it was
    subprocess.run([sys.executable, "train.py", *line.split(), f"hydra.sweep.dir={directory}"], cwd=ROOT, check=True)
    trials = read_trials(directory)
    changes = differences(by_setting(trials))
    lines = ["# Changed copies of few rows of sst2, `model=mini`", ""]
    lines += [f"{hardware()}; {measured['date']}; `python train.py {line}`; mean over the seeds ± standard deviation"]
    lines += ["(smallest to largest).", ""]
    lines += [*(directory / "seeds.md").read_text("utf-8").splitlines(), "", *agreed(changes)]
    kept = {"trials": [{"overrides": trial.overrides, **trial.result} for trial in trials]}
    figures = {" ".join(setting): values for setting, values in changes.items()}
    publish("augmentation", lines, figures, kept=kept, measured={"date": measured["date"]})


def agreed(changes: Mapping[tuple[str, ...], Sequence[float]]) -> list[str]:
    """In words: a change counts where it has one sign with every seed; and how many would if none did anything."""
    shown = {f"{kind} of {count}": values for (count, kind), values in changes.items() if values}
    gains = [name for name, values in shown.items() if min(values) > 0]
    losses = [name for name, values in shown.items() if max(values) < 0]
    by_chance = sum(2.0 ** (1 - len(values)) for values in shown.values())
    return [
        f"Every seed gains by: {', '.join(gains) or 'nothing'}.",
        f"Every seed loses by: {', '.join(losses) or 'nothing'}.",
        f"For the other {len(shown) - len(gains) - len(losses)} of {len(shown)} the seeds disagree: no gain is shown.",
        f"If no change did anything, the seeds would agree on {by_chance:.1f} of {len(shown)} by chance.",
    ]
