"""What `permafrost check-data` finds in public data sets, and what it costs: python benchmarks/data.py

Every data set beside this clone is read as a run of its task would read it. The cost is of made-up rows, each of 20 to
60 words drawn as often as ag_news has them, checked with `cleaning=default` in a process of its own: cleaned, looked
through for exact and near copies, and tokenised. Writes results/data.md and .json, and prints both.
"""

import csv
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
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
COUNTS = (50_000, 100_000, 200_000)


def main() -> None:
    found = {name: check(line) for name, line in SETS.items()}
    costs = {count: cost(count) for count in COUNTS}
    write(found, costs)


def check(line: str) -> dict[str, Any]:
    """The command in a process of its own: seconds of CPU, which a busy machine does not change, peak memory, how it
    ended, the card's rows, and problems by code."""
    with tempfile.TemporaryDirectory() as directory:
        problems = Path(directory) / "problems.jsonl"
        arguments = [*shlex.split(line.format(shared=SHARED)), f"data.cache_dir={directory}/cache"]
        code = "from permafrost.cli import main; main()"
        command = [sys.executable, "-c", code, "check-data", *arguments, "--output", str(problems)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        counts = Counter(json.loads(one)["code"] for one in problems.read_text("utf-8").splitlines())
    rows = [line for line in told.splitlines() if line.startswith(("train:", "validation:", "test:"))]
    print(f"{line}: {seconds:.1f} s, {dict(counts)}")
    return {
        "command": f"permafrost check-data {line}",
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": round(seconds, 2),
        "peak_memory_mb": round(usage.ru_maxrss / 1024, 1),
        "rows": [int(row.split()[1].replace(",", "")) for row in rows],
        "problems": dict(sorted(counts.items())),
    }


def cost(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train.csv"
        write_rows(path, count)
        size_mb = path.stat().st_size / 2**20
        whole = check(f"cleaning=default data=files data.train={path}")
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


def counted(problems: dict[str, int], codes: tuple[str, ...] | None) -> int:
    chosen = [code for code in problems if code.startswith("E")] if codes is None else codes
    return sum(problems.get(code, 0) for code in chosen)


def write(found: dict[str, dict[str, Any]], costs: dict[int, dict[str, Any]]) -> None:
    stated = {"hardware": hardware(), "date": date.today().isoformat()}
    lines = ["# What check-data finds in public data sets", ""]
    lines += [f"`python benchmarks/data.py`; {stated['hardware']}; {stated['date']}. Rows are what is left in train,"]
    lines += ["validation and test; of the rest, how many rows each is told of, by the codes of data/problems.py.", ""]
    lines += ["| | rows | " + " | ".join(SHOWN) + " | CPU s |", "|---" * (len(SHOWN) + 3) + "|"]
    for name, of_set in found.items():
        cells = [f"{counted(of_set['problems'], codes) or '-'}" for codes in SHOWN.values()]
        rows = " + ".join(f"{count:,}" for count in of_set["rows"]) or "-"
        lines.append("| " + " | ".join([name, rows, *cells, f"{of_set['seconds']:.1f}"]) + " |")
    lines += ["", "## What it costs", ""]
    lines += ["| rows | file, MB | CPU s | peak memory, MB | CPU ms a row |", "|---|---|---|---|---|"]
    for count, of_count in costs.items():
        cells = [f"{count:,}", of_count["file_mb"], f"{of_count['seconds']:.1f}", f"{of_count['peak_memory_mb']:,.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {1000 * of_count['seconds'] / count:.3f} |")
    lines += ["", "```bash", *(of_set["command"] for of_set in found.values()), "```"]
    (RESULTS / "data.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "data.json").write_text(json.dumps(stated | {"sets": found, "costs": costs}, indent=1) + "\n")
    print("\n".join(lines))
    print(json.dumps(stated | {"costs": costs}))


if __name__ == "__main__":
    main()
