"""A sweep's trials in one process, beside a program for each of them: run by `python benchmarks/run.py trials`."""

import json
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from materials import OUTPUTS
from pairs import Figure, order, summary, table
from stated import ROOT, hardware, publish

TRIALS, PAIRS = 3, 5
DIRECTORY = OUTPUTS / "trials"
RECIPE = (
    "freezing.blocks=4 trainer.max_epochs=1 data.max_train_rows=1000 callbacks.best=null callbacks.last=null "
    f"yardsticks=false logger=none store=on store.dir={DIRECTORY}/activations"
)
FIGURES = (
    Figure("seconds", f"{TRIALS} trials, s", 1, compared=True),
    Figure("last_mb", "peak memory of the last one, MB", 0, compared=True),
)


def trials() -> None:
    """Seconds, the memory that earlier trials leave behind, and whether every score is the same to the last bit."""
    run_side("peer", 1)  # fills the store and the caches, and is not counted
    pairs = [{side: measured(side) for side in order(number)} for number in range(PAIRS)]
    same = all(pair["ours"]["scores"] == pair["peer"]["scores"] for pair in pairs)
    lines = ["# A sweep's trials in one process", ""]
    lines += [f"{hardware()}; {date.today()}; `python benchmarks/run.py trials`; pairs: {PAIRS}, by turns; median"]
    lines += [
        f"(smallest to largest). Test scores of all trials are {'' if same else 'not '}the same to the last bit.",
        "",
    ]
    lines += [*table(pairs, FIGURES, "a program for each", ours="one process"), "", "```bash"]
    lines += [" ".join(["python", *command]) for side in ("ours", "peer") for command in commands(side, TRIALS)]
    publish("trials", [*lines, "```"], summary(pairs, FIGURES) | {"same_scores": same}, kept={"pairs": pairs})


def measured(side: str) -> dict[str, Any]:
    start = time.perf_counter()
    results = run_side(side, TRIALS)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "last_mb": results[-1]["peak_memory_mb"], "scores": [each["test"] for each in results]}


def run_side(side: str, count: int) -> list[dict[str, Any]]:
    """result.json of each trial."""
    shutil.rmtree(ROOT / directory_of(side), ignore_errors=True)
    for command in commands(side, count):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    paths = [ROOT / directory_of(side) / str(number) / "result.json" for number in range(count)]
    return [json.loads(path.read_text()) for path in paths]


def commands(side: str, count: int) -> list[list[str]]:
    directory, seeds = directory_of(side), [str(seed) for seed in range(count)]
    if side == "ours":
        return [["train.py", "-m", *RECIPE.split(), f"seed={','.join(seeds)}", f"hydra.sweep.dir={directory}"]]
    return [["train.py", *RECIPE.split(), f"seed={seed}", f"hydra.run.dir={directory}/{seed}"] for seed in seeds]


def directory_of(side: str) -> Path:
    return DIRECTORY / side
