"""What `permafrost check-data` finds in public data sets, and what it costs: python benchmarks/data.py

Every data set beside this clone is read as a run of its task would read it. The cost is of made-up rows, each of 20 to
60 words drawn as often as ag_news has them, in a process of its own: checked, looked through for exact and near copies
and tokenised, and the same with `cleaning=default`. Labels are turned over in two data sets, and looked for. Writes
results/data.md and .json, and prints both.
"""

import csv
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

from stated import RESULTS, ROOT, SHARED, hardware

FILES = "data=files data.train={0}/{1} data.validation={0}/{2} data.test={0}/{3}"
NER = "task=ner data.format=conll "
LM = "task=language_modeling freezing=none "
# data set -> what one would type after `python train.py`; {shared} holds them
SETS = {
    **{name: f"experiment={name}" for name in ("ag_news", "sst2", "sst5", "cfimdb", "stsb", "wnut17", "bc5cdr")},
    **{name: f"experiment={name}" for name in ("ncbi_disease", "webnlg", "conala", "mbpp", "scitldr", "poems")},
    **{name: f"experiment={name}" for name in ("dailydialog", "dailydialog_acts", "unfair_tos", "cuad_clauses")},
    **{name: f"experiment={name}" for name in ("multi30k", "wikitext2")},
    "wikigold": NER + FILES.format("{shared}/wikigold", "train.conll", "dev.conll", "test.conll"),
    "sec_filings_ner": NER + "data=files data.train={shared}/sec_filings_ner/train.conll "
    "data.test={shared}/sec_filings_ner/test.conll",
    "multidogo finance": FILES.format("{shared}/multidogo/finance", "train.tsv", "dev.tsv", "test.tsv"),
    "multidogo fastfood": FILES.format("{shared}/multidogo/fastfood", "train.tsv", "dev.tsv", "test.tsv"),
    "camrest676": "task=dialogue " + FILES.format("{shared}/camrest676", "train.jsonl", "val.jsonl", "test.jsonl"),
    "classic_books": LM + FILES.format("{shared}/classic_books", "train.jsonl.gz", "val.jsonl.gz", "test.jsonl.gz"),
    "sonnets": f"{LM}data=files data.train={{shared}}/sonnets/sonnets.txt",
    "tiny_shakespeare": f"{LM}data=files data.train={{shared}}/tiny_shakespeare/input.txt",
    "ag_news raw": "data=files data.train={shared}/ag_news/test_raw.csv",
}
SHOWN = {  # column -> the codes that it counts
    "errors": None,
    "no text": ("W101",),
    "exact copies": ("W302",),
    "near copies": ("W303",),
    "leaks, exact": ("W304",),
    "leaks, near": ("W305",),
    "conflicts": ("W301",),
    "too long": ("W401",),
    "mojibake": ("W402",),
    "control": ("W403",),
}
COUNTS = (1_000, 50_000, 100_000, 200_000)  # the first is what it takes to begin
KINDS = {"as they are": "", "cleaned": "cleaning=default "}
TURNED = 0.05  # of the labels


def main() -> None:
    found = {name: check(line) for name, line in SETS.items()}
    costs = {kind: {count: cost(line, count) for count in COUNTS} for kind, line in KINDS.items()}
    write(found, costs, {name: wrong_labels(name) for name in ("sst2", "ag_news")})


# Its own peak at its end: the one that wait4 tells begins with that of the process that started it.
CHECK = """
import atexit, pathlib
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text()))
from permafrost.cli import main
main()
"""


def check(line: str) -> dict[str, Any]:
    """The command in a process of its own: seconds, and those of CPU, which a busy machine changes less; peak memory,
    how it ended, the card's rows, and problems by code."""
    with tempfile.TemporaryDirectory() as directory:
        problems = Path(directory) / "problems.jsonl"
        arguments = [*shlex.split(line.format(shared=SHARED)), f"data.cache_dir={directory}/cache"]
        command = [sys.executable, "-c", CHECK, "check-data", *arguments, "--output", str(problems)]
        start = time.perf_counter()
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            told = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)  # which Popen cannot find out any more
        waited = time.perf_counter() - start
        seconds = usage.ru_utime + usage.ru_stime
        counts = Counter(json.loads(one)["code"] for one in problems.read_text("utf-8").splitlines())
    rows = re.findall(r"^(?:train|validation|test): ([\d,]+) rows", told, re.MULTILINE)
    print(f"{line}: {seconds:.1f} s, {dict(counts)}")
    return {
        "command": f"permafrost check-data {line.format(shared='../shared/data')}",
        "exit_code": process.returncode,
        "seconds": round(seconds, 2),
        "waited": round(waited, 2),
        "peak_memory_mb": round(int(re.findall(r"VmHWM:\s+(\d+)", told)[0]) / 1024, 1),
        "rows": [int(count.replace(",", "")) for count in rows],
        "problems": dict(sorted(counts.items())),
    }


def cost(line: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train.csv"
        write_rows(path, count)
        size_mb = path.stat().st_size / 2**20
        whole = check(f"{line}data=files data.train={path}")
    return whole | {"file_mb": round(size_mb, 1)}


def write_rows(path: Path, count: int) -> None:
    with (SHARED / "ag_news" / "train.csv").open(encoding="utf-8", newline="") as source:
        counts = Counter(word for row in csv.DictReader(source) for word in row["text"].split())
    rng, words, weights = random.Random(0), list(counts), list(counts.values())
    drawn = rng.choices(words, weights, k=count * 40)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        start = 0
        for number in range(count):
            length = rng.randint(20, 60)
            start = (start + length) % (len(drawn) - 60)
            writer.writerow([" ".join(drawn[start : start + length]), "abcd"[number % 4]])


def wrong_labels(name: str) -> dict[str, float]:
    """Of a data set of which some training labels are turned over: how well these are ranked before the others, what
    share of those that are told of are among them, and they among those; and how often the cheap model that goes by
    the words is right where it is trained on labels as they were."""
    import numpy as np
    from sklearn.metrics import roc_auc_score

    from permafrost.data.files.readers import read_rows
    from permafrost.data.quality.wrong_labels import cross_validated, label_quality

    file, text = {"sst2": ("train.tsv", "sentence"), "ag_news": ("train.csv", "text")}[name]
    rows = list(read_rows(SHARED / name / file))
    texts, true = [row[text] for row in rows], np.array([int(row["label"]) for row in rows])
    rng, wrong = random.Random(0), np.zeros(len(rows), bool)
    wrong[rng.sample(range(len(rows)), int(TURNED * len(rows)))] = True
    classes = int(true.max()) + 1
    given = [
        (label + rng.randrange(1, classes)) % classes if is_wrong else label
        for label, is_wrong in zip(true, wrong, strict=True)
    ]
    quality, told, _ = label_quality(texts, [str(label) for label in given])
    return {
        "auroc": float(roc_auc_score(wrong, -quality)),
        "precision": float(wrong[told].mean()),
        "recall": float(told[wrong].mean()),
        "accuracy": float((cross_validated(texts, true).argmax(1) == true).mean()),
    }


def counted(problems: dict[str, int], codes: tuple[str, ...] | None) -> int:
    chosen = [code for code in problems if code.startswith("E")] if codes is None else codes
    return sum(problems.get(code, 0) for code in chosen)


def write(found: dict[str, dict[str, Any]], costs: dict[str, dict[int, dict[str, Any]]], wrong: dict[str, Any]) -> None:
    stated: dict[str, Any] = {"hardware": hardware(), "date": date.today().isoformat()}
    lines = ["# What check-data finds in public data sets", ""]
    lines += [f"`python benchmarks/data.py`; {stated['hardware']}; {stated['date']}. Rows are what is left in train,"]
    lines += ["validation and test; of the rest, how many rows each is told of, by the codes of data/problems.py.", ""]
    lines += ["| | rows | " + " | ".join(SHOWN) + " | CPU s |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, of_set in found.items():
        cells = [f"{counted(of_set['problems'], codes) or '-'}" for codes in SHOWN.values()]
        rows = " + ".join(f"{count:,}" for count in of_set["rows"]) or "-"
        lines.append("| " + " | ".join([name, rows, *cells, f"{of_set['seconds']:.1f}"]) + " |")
    lines += [*cost_lines(costs), *wrong_lines(wrong)]
    lines += ["", "```bash", *(of_set["command"] for of_set in found.values()), "```"]
    (RESULTS / "data.md").write_text("\n".join(lines) + "\n")
    stated |= {"sets": found, "costs": costs, "wrong_labels": wrong}
    (RESULTS / "data.json").write_text(json.dumps(stated, indent=1) + "\n")
    print("\n".join(lines))


def cost_lines(costs: dict[str, dict[int, dict[str, Any]]]) -> list[str]:
    lines = ["", "## What it costs", ""]
    lines += [
        "Rows of 20 to 60 words, checked as they are or with `cleaning=default`. The last columns are of what more"
    ]
    lines += ["rows add: CPU seconds to those of half as many, and MB of memory for each MB of the file.", ""]
    lines += ["| rows | | file, MB | s | CPU s | peak memory, MB | to half the rows | MB a MB |", "|---" * 8 + "|"]
    for kind, of_kind in costs.items():
        for count, of_count in of_kind.items():
            cells = [f"{count:,}", kind, f"{of_count['file_mb']}", f"{of_count['waited']:.1f}"]
            cells += [f"{of_count['seconds']:.1f}", f"{of_count['peak_memory_mb']:,.0f}"]
            lines.append(f"| {' | '.join([*cells, *growth(of_count, of_kind.get(count // 2), of_kind[COUNTS[0]])])} |")
    return lines


def wrong_lines(wrong: dict[str, dict[str, float]]) -> list[str]:
    lines = ["", "## Wrong labels", ""]
    lines += [f"{TURNED:.0%} of the training labels turned over, and `cleaning.wrong_labels=report`. How well they are"]
    lines += ["ranked is bounded by how much words alone tell of the label: a row that the cheap model is wrong about"]
    lines += ["looks like one whose label is.", ""]
    lines += ["| | AUROC | precision | recall | accuracy of the cheap model |", "|---" * 5 + "|"]
    rows = ([name, *(f"{value:.3f}" for value in of_set.values())] for name, of_set in wrong.items())
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def growth(here: dict[str, Any], half: dict[str, Any] | None, least: dict[str, Any]) -> list[str]:
    """Nothing of the first."""
    seconds = f"{here['seconds'] / half['seconds']:.2f}" if half else ""
    if here is least:
        return [seconds, ""]
    more = here["peak_memory_mb"] - least["peak_memory_mb"]
    return [seconds, f"{more / (here['file_mb'] - least['file_mb']):.2f}"]


if __name__ == "__main__":
    main()
