"""Whether a row costs the same, and memory stays, however many there are: python benchmarks/many_rows.py [COUNT ...]

Rows are ag_news's training rows over and over, each with words of its own in place of some, so that no two are alike.
Every COUNT (10,000 and 1,000,000) is one run of `python train.py` with four blocks of mini frozen and an empty cache;
validation and test are the same rows for all. Writes results/many_rows.md and .json, and prints the table and, last,
one line of JSON. The largest run needs about 15 GB of disk and half an hour.
"""

import argparse
import csv
import json
import os
import random
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import materials
from stated import RESULTS, ROOT, SHARED, hardware

EDITED_WORDS, MAX_LENGTH = 3, 32
STAGES = ("setup", "trunk", "fit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="*", type=int, default=[10_000, 1_000_000])
    counts = parser.parse_args().counts
    runs = {count: measured(count) for count in counts}
    write(runs)


def measured(count: int) -> dict[str, Any]:
    """result.json of a run over so many rows, with its command."""
    run = materials.OUTPUTS / "many_rows" / f"run-{count}"
    shutil.rmtree(ROOT / run, ignore_errors=True)
    files = {name: edited_rows(name, count if name == "train" else 1000) for name in ("train", "validation", "test")}
    splits = " ".join(f"data.{name}={path}" for name, path in files.items())
    command = (
        f"python train.py model=mini freezing.blocks=4 trainer.max_epochs=1 data=files {splits} "
        f"data.max_length={MAX_LENGTH} data.cache_dir={run}/cache store=on store.dir={run}/activations store.max_gb=64 "
        f"callbacks.best=null callbacks.last=null yardsticks=false logger=none hydra.run.dir={run}"
    )
    before = cpu_seconds_of_ended()
    subprocess.run([sys.executable, *shlex.split(command)[1:]], cwd=ROOT, check=True)
    cpu_seconds = cpu_seconds_of_ended() - before
    result = json.loads((ROOT / run / "result.json").read_text())
    for name in ("cache", "activations", "model"):
        shutil.rmtree(ROOT / run / name)
    return {"command": command, "result": result, "cpu_seconds": cpu_seconds}


def cpu_seconds_of_ended() -> float:
    """Of all programs that were run: what other work on the machine lengthens least."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def edited_rows(split: str, count: int) -> Path:
    path = materials.OUTPUTS / "many_rows" / f"{split}-{count}.csv"
    if not (ROOT / path).exists():
        materials.write_rows(ROOT / path, edited(split, count))
    return path


def edited(split: str, count: int) -> Iterator[dict[str, str]]:
    """Seeded, and told apart by the number that one of the words becomes."""
    file = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}[split]
    with (SHARED / "ag_news" / file).open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source))
    rng, vocabulary = random.Random(split), sorted({word for row in rows for word in row["text"].split()})
    for number in range(count):
        row = rows[number % len(rows)]
        words = row["text"].split()
        for place in rng.sample(range(min(len(words), MAX_LENGTH // 2)), min(EDITED_WORDS, len(words))):
            words[place] = rng.choice(vocabulary)
        words[0] = str(number)
        yield {"text": " ".join(words), "label": row["label"]}


def write(runs: dict[int, dict[str, Any]]) -> None:
    few, many = min(runs), max(runs)
    figures = {count: figures_of(run, count) for count, run in runs.items()}
    ratio = {name: round(figures[many][name] / figures[few][name], 3) for name in figures[few]}
    stated = {"hardware": hardware(), "date": date.today().isoformat(), "rows": [few, many], "ratio": ratio}
    lines = ["# A row's cost by the number of rows", ""]
    command = f"python benchmarks/many_rows.py {' '.join(map(str, runs))}"
    threads = os.environ.get("OMP_NUM_THREADS", os.cpu_count())
    lines += [f"`{command}`; {stated['hardware']}; threads: {threads}; {stated['date']}; one run each.", ""]
    lines += ["| | " + " | ".join(f"{count:,} rows" for count in figures) + " | ratio |"]
    lines += ["|---" * (len(figures) + 2) + "|"]
    for name in ratio:
        cells = [f"{figures[count][name]:,.3f}" for count in figures]
        lines.append("| " + " | ".join([name, *cells, f"{ratio[name]:.2f}"]) + " |")
    lines += ["", "```bash", *(run["command"] for run in runs.values()), "```"]
    (RESULTS / "many_rows.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "many_rows.json").write_text(json.dumps(stated | {"runs": runs}, indent=1) + "\n")
    print("\n".join(lines))
    print(json.dumps(stated))


def figures_of(run: dict[str, Any], count: int) -> dict[str, float]:
    """Milliseconds a row, by stage and in all, and memory."""
    result = run["result"]
    per_row = {f"{stage}, ms a row": 1000 * result["seconds"][stage] / count for stage in STAGES}
    return {
        **per_row,
        "all three, ms a row": sum(per_row.values()),
        "CPU time of the whole program, ms a row": 1000 * run["cpu_seconds"] / count,
        "peak memory, MB": result["peak_memory_mb"],
    }


if __name__ == "__main__":
    main()
