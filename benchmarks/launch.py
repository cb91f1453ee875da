"""Seconds to start: run by `python benchmarks/run.py launch`."""

import shutil
import subprocess
import sys
import time
from datetime import date

from stated import ROOT, hardware, publish

from permafrost.reporting.seeds import spread

STARTS = 5


def launch() -> None:
    """From the command to its first logged optimizer step, the caches warm; and of `--cfg job`."""
    first_steps, configs = [], []
    for _ in range(STARTS):
        run_dir = ROOT / "outputs" / "benchmarks" / "launch"
        shutil.rmtree(run_dir, ignore_errors=True)
        start = time.perf_counter()
        arguments = ["trainer.log_every_n_steps=1", f"hydra.run.dir={run_dir}"]
        process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
        metrics = run_dir / "metrics.jsonl"
        while not (metrics.exists() and "train/loss" in metrics.read_text()):
            if process.poll() is not None:
                raise SystemExit("the run ended before its first step")
            time.sleep(0.02)
        first_steps.append(time.perf_counter() - start)
        process.kill()
        process.wait()
        start = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "--cfg", "job"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        configs.append(time.perf_counter() - start)
    lines = [
        "# Seconds to start",
        "",
        f"{hardware()}; {date.today()}; `python benchmarks/run.py launch`: {STARTS} starts, mean (smallest to largest)",
        "",
        "| | s |",
        "|---|---|",
        f"| `python train.py` to its first optimizer step | {spread(first_steps, '.2f')} |",
        f"| `python train.py --cfg job` | {spread(configs, '.2f')} |",
    ]
    publish("launch", lines, {"first_step_s": first_steps, "config_s": configs})
