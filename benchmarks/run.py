"""Measure again what benchmarks/results states: python benchmarks/run.py [NAME ...] [--missing] [--jobs 2]

Each study runs the real command over seeds and writes NAME.json (every run) and NAME.md (the table), with the hardware,
the date and the command of each row. `--missing` runs the rows alone that NAME.json has not yet; `--jobs` runs so many
rows of `tasks` at a time, each with its share of the cores.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared" / "data"
FILES = "data=files data.train={0}/{1} data.validation={0}/{2} data.test={0}/{3}"

# study -> rows of (name, command line after `python train.py`, seeds); {shared} holds the public data sets
Row = tuple[str, str, Sequence[int]]
PYDOCS: list[Row] = [
    ("default", "", (0, 1, 2)),
    ("from scratch", "model.init=random", (0, 1)),
]
PLAIN = "trainer.max_epochs=4 head.init=normal "
REAL: list[Row] = [
    (
        "sst2",
        f"task=sentiment {PLAIN}loss.label_smoothing=0 "
        + FILES.format("{shared}/sst2", "train.tsv", "dev.tsv", "test.tsv"),
        (0,),
    ),
    (
        "ag_news",
        FILES.format("{shared}/ag_news", "train.csv", "val.csv", "test.csv"),
        (0,),
    ),
    ("stsb", f"task=regression {PLAIN}" + FILES.format("{shared}/stsb", "train.csv", "dev.csv", "test.csv"), (0,)),
]


EXPERIMENTS = (
    *("sst2", "sst5", "cfimdb", "ag_news", "cuad_clauses", "unfair_tos", "stsb", "wnut17", "bc5cdr", "ncbi_disease"),
    *("multi30k", "webnlg", "scitldr", "conala", "mbpp", "poems", "wikitext2", "dailydialog", "dailydialog_acts"),
    "films_and_names",
)
TASKS: list[Row] = [
    *((name, f"experiment={name}", (0,)) for name in EXPERIMENTS),
    ("wnut17, causal", "experiment=wnut17 model.attention=causal", (0,)),
    ("bc5cdr, causal", "experiment=bc5cdr model.attention=causal", (0,)),
]
METRICS = ("accuracy", "f1_macro", "f1_micro", "span_f1", "bleu", "chrf", "rouge_l", "parses", "perplexity")
METRICS += ("word_perplexity", "pearson", "spearman", "rmse")

# Each seed draws other rows; both kinds have the same ones.
FEW = "experiment=sst2 data.max_train_rows={} 'data.split_seed=${{seed}}' callbacks.early_stopping=null "
FEW += "yardsticks=false trainer.max_epochs=10"
ADAPTED = " init_from=outputs/benchmarks/adaptation-texts-0"
LABELLED_ROWS, ADAPTATION_SEEDS = (200, 1000), range(3)
ADAPTATION: list[Row] = [
    ("texts", "experiment=domain_adaptation", (0,)),
    *((f"{count} rows, as pretrained", FEW.format(count), ADAPTATION_SEEDS) for count in LABELLED_ROWS),
    *((f"{count} rows, adapted", FEW.format(count) + ADAPTED, ADAPTATION_SEEDS) for count in LABELLED_ROWS),
]

FROZEN = "freezing.blocks=4 trainer.max_epochs=3 "
STORE: list[Row] = [
    ("computed each time", f"{FROZEN}store=off", range(5)),
    *(
        (f"stored as {dtype}", f"{FROZEN}store=on store.dtype={dtype}", range(5))
        for dtype in ("float32", "float16", "bfloat16")
    ),
]


def main() -> None:
    import operations  # which writes where this module says

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of studies; all where none is given")
    parser.add_argument("--missing", action="store_true", help="only the rows that NAME.json has not yet")
    parser.add_argument("--jobs", type=int, default=1, help="rows of tasks at a time")
    options = parser.parse_args()
    tasks_options = {"missing": options.missing, "jobs": options.jobs}
    studies: dict[str, Callable[[], None]] = {
        "pydocs": lambda: study("pydocs", "Docstrings to chapters, `data=pydocs`", PYDOCS),
        "real_data": lambda: study("real_data", "Public data sets with `model=mini`", REAL),
        "tasks": lambda: study("tasks", "Every task on public data with `model=mini`", TASKS, **tasks_options),
        "store": lambda: study("store", "What the stored type does to the metric, four blocks of `mini` frozen", STORE),
        "augmentation": augmentation,
        "adaptation": adaptation,
        "padding": padding,
        "launch": launch,
        "precision": operations.precision,
        "attention_types": operations.attention_types,
        "trunk_pass": operations.trunk_pass,
        "freeze_curve": freeze_curve,
    }
    for name in options.names or list(studies):
        if name not in studies:
            raise SystemExit(f"no study {name!r}; there are {', '.join(studies)}")
        studies[name]()


def study(name: str, title: str, rows: Sequence[Row], *, missing: bool = False, jobs: int = 1) -> None:
    """Every row's command over the seeds; figures are means with the smallest and largest."""
    known = {row["command"]: row for row in known_rows(name)} if missing else {}
    done = {label: known[command_of(line)] for label, line, _ in rows if command_of(line) in known}
    with ThreadPoolExecutor(jobs) as pool:
        waited = [
            pool.submit(measured_row, name, row, jobs) for row in rows if row[0] not in done and has_its_data(row)
        ]
        for future in as_completed(waited):
            row = future.result()
            done[row["row"]] = row
            write(name, title, [done[label] for label, _, _ in rows if label in done])


def command_of(line: str) -> str:
    return f"python train.py {line}".strip()


def has_its_data(row: Row) -> bool:
    is_here = SHARED.is_dir() or not ("{shared}" in row[1] or "experiment=" in row[1])
    if not is_here:
        print(f"{row[0]}: left out, its data are not beside this clone")
    return is_here


def measured_row(name: str, row: Row, jobs: int) -> dict:
    label, line, seeds = row
    runs = [train(f"{name}-{label}", line, seed, jobs) for seed in seeds]
    return {"row": label, "command": command_of(line), "jobs": jobs, "runs": runs}


def known_rows(name: str) -> list[dict]:
    """Of the study's last table."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def train(label: str, line: str, seed: int, jobs: int = 1) -> dict:
    """result.json of the run, with its yardsticks; of several at a time each has its share of the cores."""
    run_dir = ROOT / "outputs" / "benchmarks" / f"{label.replace(' ', '_').replace(',', '')}-{seed}"
    result = run_dir / "result.json"
    if not result.exists():  # a stopped study goes on where it was
        words = shlex.split(line.replace("{shared}", str(SHARED)))
        arguments = [*words, f"seed={seed}", "logger=none", f"hydra.run.dir={run_dir}"]
        share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        command = [sys.executable, "train.py", *arguments, "resume=auto"]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | share)
    yardsticks = run_dir / "yardsticks.json"
    extra = {"yardsticks": json.loads(yardsticks.read_text())} if yardsticks.exists() else {}
    return json.loads(result.read_text()) | extra


def write(name: str, title: str, done: Sequence[dict]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    stated = {"hardware": hardware(), "date": date.today().isoformat(), "rows": done}
    (RESULTS / f"{name}.json").write_text(json.dumps(stated, indent=1) + "\n")
    jobs = max(row.get("jobs", 1) for row in done)
    at_a_time = f"{jobs} runs at a time; " if jobs > 1 else ""
    lines = [f"# {title}", ""]
    lines += [f"{hardware()}; {at_a_time}{date.today()}; mean over the seeds (smallest to largest).", ""]
    lines += ["| | metric | test | validation | seeds | frozen blocks | fit, s | command |", "|---" * 8 + "|"]
    for row in done:
        runs = row["runs"]
        for metric in reported(runs[0]["test"]):
            test, validation = ([run[stage][metric] for run in runs] for stage in ("test", "validation"))
            seconds = spread([run["seconds"]["fit"] for run in runs], 0)
            seeds = ", ".join(str(run["seed"]) for run in runs)
            cells = [row["row"], metric, spread(test), spread(validation), seeds]
            cells += [str(runs[0]["frozen_blocks"]), seconds]
            lines.append("| " + " | ".join([*cells, f"`{row['command']}`"]) + " |")
    for row in done:
        for yardstick, value in row["runs"][0].get("yardsticks", {}).items():
            line = f"| {row['row']}: {yardstick} | | {value:.4f} | | | | | printed by the same run |"
            lines.append(line)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def reported(scores: Mapping[str, float]) -> list[str]:
    """Those of METRICS, in their order, of all parts where there are several."""
    return [name for metric in METRICS for name in scores if name.rpartition("/")[2] == metric]


def freeze_curve() -> None:
    """Validation accuracy by frozen depth, over learning rates and poolings; each core sweeps some of the depths."""
    grids = [("last", "1e-3"), ("mean", "1e-3")]
    queues = [["0", "2", "5"], ["1", "3", "4", "6"]]  # about equal work
    sweeps = [sweep_of(depths, *grid) for depths in queues for grid in grids]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    waiting = [[sweep for sweep in sweeps if sweep["depths"] == depths] for depths in queues]
    while any(waiting):
        running = [subprocess.Popen(queue.pop(0)["command"], cwd=ROOT, env=environment) for queue in waiting if queue]
        if any([process.wait() for process in running]):
            raise SystemExit("a trial failed")
    trials = [
        json.loads(path.read_text()) | {"config": chosen(path)}
        for s in sweeps
        for path in s["dir"].glob("*/result.json")
    ]
    write_freeze_curve(trials)


def augmentation() -> None:
    """The sweep's own table over its seeds, and which of its differences all seeds agree on."""
    from permafrost.reporting.seeds import by_setting, differences
    from permafrost.reporting.sweep import read_trials

    if not SHARED.is_dir():
        print("augmentation: left out, its data are not beside this clone")
        return
    line = "-m experiment=augmentation_study"
    directory = ROOT / "outputs" / "benchmarks" / "augmentation"  # a stopped study goes on where it was
    subprocess.run([sys.executable, "train.py", *line.split(), f"hydra.sweep.dir={directory}"], cwd=ROOT, check=True)
    trials = read_trials(directory)
    lines = ["# Changed copies of few rows of sst2, `model=mini`", ""]
    lines += [f"{hardware()}; {date.today()}; `python train.py {line}`; mean over the seeds (smallest to largest).", ""]
    lines += [*(directory / "seeds.md").read_text("utf-8").splitlines(), "", *agreed(differences(by_setting(trials)))]
    stated = {"hardware": hardware(), "date": date.today().isoformat()}
    stated |= {"trials": [{"overrides": trial.overrides, **trial.result} for trial in trials]}
    (RESULTS / "augmentation.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "augmentation.json").write_text(json.dumps(stated, indent=1) + "\n")
    print("\n".join(lines))


def adaptation() -> None:
    """The study, and seed by seed what the adapted model gains on the same rows."""
    if not SHARED.is_dir():
        print("adaptation: left out, its data are not beside this clone")
        return
    study("adaptation", "sst2 after more pretraining on its own texts, `model=mini`", ADAPTATION)
    runs = {row["row"]: row["runs"] for row in known_rows("adaptation")}
    lines = [""]
    for count in LABELLED_ROWS:
        before, after = (
            [run["test"]["accuracy"] for run in runs[f"{count} rows, {kind}"]] for kind in ("as pretrained", "adapted")
        )
        gains = [of_after - of_before for of_before, of_after in zip(before, after, strict=True)]
        lines.append(f"{count} rows: test accuracy changes by {spread(gains)}, over {len(gains)} seeds of other rows.")
    with (RESULTS / "adaptation.md").open("a") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


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


def sweep_of(depths: Sequence[str], pooling: str, rates: str) -> dict:
    directory = ROOT / "outputs" / "benchmarks" / f"freeze_curve-{pooling}-{'-'.join(depths)}"
    options = [f"freezing.blocks={','.join(depths)}", f"optimizer.lr={rates}", f"head.pooling={pooling}"]
    command = [sys.executable, "train.py", "-m", "experiment=freeze_curve", *options, f"hydra.sweep.dir={directory}"]
    return {"depths": list(depths), "dir": directory, "command": command}


def chosen(result: Path) -> dict:
    """The swept values of a trial, from its config.yaml."""
    import yaml

    config = yaml.safe_load(result.with_name("config.yaml").read_text())
    return {"lr": config["optimizer"]["lr"], "pooling": config["head"]["pooling"]}


def write_freeze_curve(trials: Sequence[dict]) -> None:
    from permafrost.reporting.plots import freeze_curve as plot

    best: dict[tuple[int, str], dict] = {}
    scores: dict[int, list[float]] = {}
    for trial in sorted(trials, key=lambda trial: trial["validation"]["accuracy"]):
        best[trial["frozen_blocks"], trial["config"]["pooling"]] = trial
        scores.setdefault(trial["frozen_blocks"], []).append(trial["validation"]["accuracy"])
    plot(scores, "accuracy", RESULTS / "freeze_curve.png")
    lines = ["# Accuracy by frozen depth, `data=pydocs model=mini`", ""]
    lines += [f"{hardware()}, one for each of two runs at a time; {date.today()}; seed 0.", ""]
    lines += ["`python benchmarks/run.py freeze_curve`. Chosen on validation; test is shown and not looked at.", ""]
    lines += ["| frozen blocks | head | validation | learning rate | epochs | test | fit, s |", "|---" * 7 + "|"]
    for depth, pooling in sorted(best):
        trial = best[depth, pooling]
        validation, test = (f"{trial[stage]['accuracy']:.4f}" for stage in ("validation", "test"))
        rate, epochs, seconds = f"{trial['config']['lr']:g}", str(trial["epochs"]), f"{trial['seconds']['fit']:.0f}"
        lines.append("| " + " | ".join([str(depth), pooling, validation, rate, epochs, test, seconds]) + " |")
    (RESULTS / "freeze_curve.md").write_text("\n".join([*lines, "", "![freeze curve](freeze_curve.png)", ""]))
    (RESULTS / "freeze_curve.json").write_text(json.dumps({"hardware": hardware(), "trials": trials}, indent=1) + "\n")
    print("\n".join(lines))


def launch() -> None:
    """Seconds from the command to its first logged optimizer step, the caches warm; and of `--cfg job`."""
    import shutil

    first_steps, configs = [], []
    for _ in range(5):
        run_dir = ROOT / "outputs" / "benchmarks" / "launch"
        shutil.rmtree(run_dir, ignore_errors=True)
        start = time.perf_counter()
        arguments = ["trainer.log_every_n_steps=1", f"hydra.run.dir={run_dir}"]
        process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
        metrics = run_dir / "metrics.jsonl"
        while not (metrics.exists() and "train/loss" in metrics.read_text()):
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
        f"{hardware()}; {date.today()}; `python benchmarks/run.py launch`, 5 starts, mean (smallest to largest).",
        "",
        "| | s |",
        "|---|---|",
        f"| `python train.py` to its first optimizer step | {spread(first_steps, 2)} |",
        f"| `python train.py --cfg job` | {spread(configs, 2)} |",
    ]
    (RESULTS / "launch.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def padding() -> None:
    """Share of computed tokens that is padding in the first three epochs' plans, default batches and tokenizer."""
    import numpy as np

    from permafrost.data.batching import TokenBatching, padding_share, shuffled_batches
    from permafrost.data.readers import read_rows
    from permafrost.model.backbone import SHIPPED
    from permafrost.tasks.preparation import load_tokenizer

    tokenizer, batching = load_tokenizer(str(SHIPPED["mini"])), TokenBatching(max_tokens=2048)
    lines = [
        "# Padding",
        "",
        f"{date.today()}; `python benchmarks/run.py padding`: batches of 2,048 tokens, epochs 1 to 3.",
    ]
    lines += ["", "| training rows of | rows | tokens | padding |", "|---" * 4 + "|"]
    for name, file, column in (("ag_news", "train.csv", "text"), ("sst2", "train.tsv", "sentence")):
        texts = [row[column] for row in read_rows(SHARED / name / file)]
        lengths = np.array([len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]])
        shares = [padding_share(shuffled_batches(lengths, batching, seed=0, epoch=e), lengths) for e in range(3)]
        percent = f"{100 * statistics.mean(shares):.2f} % ({100 * min(shares):.2f} to {100 * max(shares):.2f})"
        lines.append(f"| {name} | {len(texts):,} | {int(lengths.sum()):,} | {percent} |")
    (RESULTS / "padding.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def spread(values: Sequence[float], digits: int = 4) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def hardware() -> str:
    return f"{os.cpu_count()} cores of {cpu()}, Python {platform.python_version()}"


def cpu() -> str:
    """Its name, and whether it has AMX, which its name does not always say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} with AMX" if torch.cpu._is_amx_tile_supported() else name


def machine() -> str:
    """What the name of a table ends in whose figures are this CPU's alone: intel_xeon_with_amx."""
    return "_".join(re.findall(r"\w+", re.sub(r"\(\w+\)|processor|cpu|@.*", " ", cpu().lower())))


if __name__ == "__main__":
    main()
