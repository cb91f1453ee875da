"""What rows that a model writes are worth where there are ten of each label: python benchmarks/synthesis.py

For each seed ten training rows of each label are drawn. A run learns their labels: it is what is compared with, and the
judge. Another learns to write them; `permafrost synthesize` keeps those of its texts that the judge is surest of, and a
last run learns the rows and these texts, in as many steps. Writes results/synthesis.md and .json after every seed, and
prints the table and, last, one line of JSON. A stopped study goes on where it was: with the run, even within it, and
with the texts.
"""

import csv
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

from kept import cleared, days
from run import train
from stated import ROOT, SHARED, hardware, publish

from permafrost.data.files.readers import read_rows
from permafrost.reporting.seeds import spread

ROWS, WRITTEN, SEEDS, TEST_ROWS = 10, 50, range(5), 2000  # of each label; of each label; of a split at most


@dataclass(frozen=True)
class Source:
    files: Mapping[str, str]
    text: str
    labels: Mapping[str, str]  # as they stand in the files -> in words, from which texts are written


SOURCES = {
    "sst2": Source(
        {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"},
        "sentence",
        {"0": "negative", "1": "positive"},
    ),
    "ag_news": Source(
        {"train": "train.csv", "validation": "val.csv", "test": "test.csv"},
        "text",
        {"0": "world", "1": "sports", "2": "business", "3": "technology"},
    ),
}
COMMON = "data.validation={0}/validation.csv yardsticks=false callbacks.early_stopping=null data.batch_size=20 "
COMMON += "trainer.max_epochs=1000 "
LEARN = COMMON + "trainer.max_steps=200 trainer.val_check_interval=40 data.test={0}/test.csv"
FEW = "data=files data.train={0}/few.csv "
MIXTURE = "data=mixture 'data.mixture={{rows:{{train:{0}/few.csv,weight:1}},written:{{train:{0}/new.csv,weight:1}}}}' "
WRITE = "task=generation data.columns.source=label data.columns.target=text task.decoding.do_sample=true "
WRITE += "task.decoding.top_k=40 task.decoding.max_new_tokens=64 task.validation_generations=0 "
# The writer knows its few rows by heart soon, and is then no better at others: it is looked at more often.
WRITE_STEPS = "trainer.max_steps=60 trainer.val_check_interval=10 data.test={0}/short.csv"
RUNS = {
    "rows": FEW + LEARN,
    "writer": WRITE + FEW + COMMON + WRITE_STEPS,
    "rows and texts": MIXTURE + LEARN,
}


def main() -> None:
    done = defaultdict[str, list[dict[str, Any]]](list)
    for seed, name in product(SEEDS, SOURCES):
        done[name].append(one_seed(name, seed))
        write(done)


def one_seed(name: str, seed: int) -> dict[str, Any]:
    """The results of the three runs, and what became of the texts."""
    directory = ROOT / "outputs" / "benchmarks" / "synthesis" / f"{name}-{seed}"
    measured = cleared(directory)
    draw_rows(SOURCES[name], SHARED / name, directory, seed)
    results = {label: result_of(label, directory, seed) for label in ("rows", "writer")}
    told = synthesize(directory, seed)
    results["rows and texts"] = result_of("rows and texts", directory, seed)
    with (directory / "new.csv").open(encoding="utf-8", newline="") as file:
        new = list(csv.DictReader(file))
    assert {row["origin"] for row in new} == {"synthetic"}
    kept = Counter(row["label"] for row in new)
    surest = {label: next(row["text"] for row in new if row["label"] == label) for label in kept}
    change = results["rows and texts"]["test"]["accuracy"] - results["rows"]["test"]["accuracy"]
    found = {"kept": kept, "surest": surest, "told": told, "results": results}
    return {"seed": seed, "date": measured["date"], "change": change, **found}


def result_of(label: str, directory: Path, seed: int) -> dict[str, Any]:
    return train(f"synthesis/{directory.name}/{label}", RUNS[label].format(directory), seed)


def draw_rows(source: Source, place: Path, directory: Path, seed: int) -> None:
    """few.csv by the seed; validation.csv, test.csv and short.csv are the first rows of their files."""
    directory.mkdir(parents=True, exist_ok=True)
    by_label = defaultdict[str, list[dict[str, str]]](list)
    for row in labelled(source, place / source.files["train"]):
        by_label[row["label"]].append(row)
    rng = random.Random(seed)
    write_rows(directory / "few.csv", [row for label in sorted(by_label) for row in rng.sample(by_label[label], ROWS)])
    for name in ("validation", "test"):
        first = list(islice(labelled(source, place / source.files[name]), TEST_ROWS))
        write_rows(directory / f"{name}.csv", first)
    write_rows(directory / "short.csv", first[:20])  # what a run writes for its own test is of no use here


def labelled(source: Source, path: Path) -> Iterable[dict[str, str]]:
    return ({"text": row[source.text], "label": source.labels[str(row["label"])]} for row in read_rows(path))


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)


def synthesize(directory: Path, seed: int) -> str:
    """What the command says of the texts that it refused."""
    told = directory / "told.txt"
    if not told.exists():
        code = "from permafrost.cli import main; main()"
        command = [sys.executable, "-c", code, "synthesize", f"{directory}/writer-{seed}", f"{directory}/rows-{seed}"]
        command += ["--train", f"{directory}/few.csv", "--output", f"{directory}/new.csv"]
        command += ["--per-label", str(WRITTEN), "--seed", str(seed)]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        told.write_text(done.stderr)
    return next(line.rpartition("; ")[2] for line in told.read_text().splitlines() if "; refused" in line)


def write(done: Mapping[str, list[dict[str, Any]]]) -> None:
    measured_on = days(of_seed for seeds in done.values() for of_seed in seeds)
    lines = [f"# Texts that a model wrote, beside {ROWS} rows of each label; `model=mini`", ""]
    lines += [f"{hardware()}; {measured_on}; `python benchmarks/synthesis.py`; each seed draws other rows; mean ±"]
    lines += ["standard deviation (smallest to largest)."]
    lines += [f"Accuracy on the first {TEST_ROWS:,} rows of test, of 200 steps each.", ""]
    lines += ["| | seeds | the rows | rows and texts | difference | texts | of the rarest label |", "|---" * 7 + "|"]
    for name, seeds in done.items():
        accuracies = [
            [run["results"][label]["test"]["accuracy"] for run in seeds] for label in ("rows", "rows and texts")
        ]
        counts = [[run["kept"].get(label, 0) for label in SOURCES[name].labels.values()] for run in seeds]
        cells = [name, str(len(seeds)), *(spread(each, ".4f") for each in accuracies)]
        cells += [spread([run["change"] for run in seeds], "+.4f")]
        cells += [spread([of(of_seed) for of_seed in counts], ".0f") for of in (sum, min)]
        lines.append("| " + " | ".join(cells) + " |")
    for name, seeds in done.items():
        gained = sum(run["change"] > 0 for run in seeds)
        lines += ["", f"{name}: {gained} of {len(seeds)} seeds gain. Seed 0 {seeds[0]['told']}; the surest are:"]
        lines += [f"- {label}: {' '.join(text.split())!r}" for label, text in seeds[0]["surest"].items()]
    lines += ["", "The runs, where few.csv has the drawn rows and new.csv the texts:", "", "```bash"]
    lines += [f"python train.py {line.format('.')}" for line in RUNS.values()]
    lines += [f"permafrost synthesize WRITER ROWS --train few.csv --output new.csv --per-label {WRITTEN}", "```"]
    changes = {name: [run["change"] for run in seeds] for name, seeds in done.items()}
    publish("synthesis", lines, changes, kept={"seeds": done}, measured={"date": measured_on})


if __name__ == "__main__":
    main()
