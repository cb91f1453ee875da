"""`permafrost predict` on rows whose frozen part is stored: run by `python benchmarks/run.py known_rows`."""

import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import materials
from pairs import Figure, order, summary, table
from stated import ROOT, SHARED, hardware, publish

from permafrost.deployment.predictor import Predictor
from permafrost.training.hardware import keep_freed_buffers, use_all_cores

PAIRS, ROWS = 5, 500
RUN = materials.OUTPUTS / "known_rows"
FIGURES = (Figure("seconds", f"{ROWS} rows, s", 2, compared=True),)


def known_rows() -> None:
    """GPT-2 124M's shape, 10 of 12 blocks frozen: the test rows of a run, by its directory and by its model alone."""
    if not SHARED.is_dir():
        print("known_rows: left out, its data are not beside this clone")
        return
    os.chdir(ROOT)
    use_all_cores()
    keep_freed_buffers()
    files = materials.ag_news(4 * ROWS)
    command = command_over(files)
    shutil.rmtree(RUN, ignore_errors=True)
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
    with files["test"].open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    predictors = {"ours": Predictor(RUN), "peer": Predictor(RUN / "model")}
    pairs = [{side: measured(predictors[side], texts) for side in order(number)} for number in range(1 + PAIRS)][1:]
    lines = ["# `permafrost predict` on known rows", ""]
    lines += [f"{hardware()}; {date.today()}; `python benchmarks/run.py known_rows`; pairs: {PAIRS}, by turns; median"]
    lines += ["(smallest to largest), loading left out. GPT-2 124M's shape, 10 of 12 blocks frozen, in float32.", ""]
    lines += [*table(pairs, FIGURES, "the model alone", ours="with the run's store"), "", "```bash", command, "```"]
    publish("known_rows", lines, summary(pairs, FIGURES), kept={"pairs": pairs})


def command_over(files: dict[str, Path]) -> str:
    splits = " ".join(f"data.{name}={path}" for name, path in files.items())
    return (
        f"python train.py model=gpt2 model.path={materials.gpt2_shape()} freezing.blocks=10 data=files {splits} "
        f"data.max_length=512 data.max_train_rows=64 trainer.max_epochs=1 store=on store.dir={RUN}/activations "
        f"yardsticks=false logger=none hydra.run.dir={RUN}"
    )


def measured(predictor: Predictor, texts: list[str]) -> dict[str, Any]:
    start = time.perf_counter()
    predictor.predict(texts)
    return {"seconds": time.perf_counter() - start}
