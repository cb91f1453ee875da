"""Measure again what benchmarks/results states: python benchmarks/run.py [NAME ...] [--missing] [--jobs 2]

A NAME is a study, or another script of this folder; without one all are run, which takes a day. Each prints its table
and, last, one line of JSON. The studies of this file run the real command over seeds and write NAME.json (every run)
and NAME.md (the table), with the hardware, the date and the command of each row. Their runs are kept in
outputs/benchmarks, and made again on other hardware or of other sources. `--missing` runs the rows alone that NAME.json
has not yet; `--jobs` runs so many rows of `tasks` at a time, each with its share of the cores. What fails is named at
the end, and does not keep the others from being run.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial

from kept import cleared, days
from recipes import ADAPTATION, LABELLED_ROWS, PYDOCS, STORE, TASKS, Row
from stated import RESULTS, ROOT, SHARED, publish

from permafrost.reporting.seeds import spread

Says = Callable[[Sequence[dict]], str]
METRICS = (
    *("accuracy", "f1_macro", "f1_micro", "span_f1", "bleu", "chrf", "rouge_l", "parses", "perplexity"),
    *("word_perplexity", "pearson", "spearman", "rmse"),
)
# What has a script of its own: the name, the script with its arguments, and whether it is of no use without ../shared
SPEED = ("frozen", "second_epoch", "seed_noise", "unfrozen", "language_modeling", "sweep", "tutorial")
SCRIPTS: dict[str, tuple[str, bool]] = {
    "speed_default": ("speed.py default", False),
    **{f"speed_{study}": (f"speed.py {study}", True) for study in SPEED},
    "profile_step": ("profile_step.py", True),
    "many_rows": ("many_rows.py", True),
    "data": ("data.py", True),
    "synthesis": ("synthesis.py", True),
    "compression_quality": ("compression.py quality", True),
    "compression_speed": ("compression.py speed", True),
    "decoding": ("decoding.py", True),
    "serving_load": ("serving.py load", False),
    "serving_branches": ("serving.py branches", True),
    "reliability": ("reliability.py", False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of studies; all where none is given")
    parser.add_argument("--missing", action="store_true", help="only the rows that NAME.json has not yet")
    parser.add_argument("--jobs", type=int, default=1, help="rows of tasks at a time")
    options = parser.parse_args()
    measures = studies(missing=options.missing, jobs=options.jobs) | {
        name: partial(run_script, name) for name in SCRIPTS
    }
    if strangers := [name for name in options.names if name not in measures]:
        raise SystemExit(f"no study {strangers[0]!r}; there are {', '.join(measures)}")
    failed = [name for name in options.names or measures if not ends_well(measures[name])]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; what they said stands above")


def ends_well(measure: Callable[[], None]) -> bool:
    try:
        measure()
    except (Exception, SystemExit):  # of a day's work the others are worth having
        traceback.print_exc()
        return False
    return True


def studies(*, missing: bool, jobs: int) -> dict[str, Callable[[], None]]:
    import augmentation  # here, as synthesis.py has its runs from this file and needs none of them
    import freeze_curve
    import known_rows
    import launch
    import operations
    import padding
    import row_reads
    import trials
    import words

    return {
        "pydocs": partial(study, "pydocs", "Docstrings to chapters, `data=pydocs`", PYDOCS),
        "tasks": partial(
            study,
            "tasks",
            "Every task on public data with `model=mini`",
            TASKS,
            missing=missing,
            jobs=jobs,
            says=behind,
        ),
        "store": partial(
            study, "store", "What the stored type does to the metric, four blocks of `mini` frozen", STORE, says=changes
        ),
        "adaptation": partial(
            study, "adaptation", "sst2 after more pretraining on its own texts, `model=mini`", ADAPTATION, says=gains
        ),
        "augmentation": augmentation.augmentation,
        "freeze_curve": freeze_curve.freeze_curve,
        "padding": padding.padding,
        "words": words.words,
        "launch": launch.launch,
        "trials": trials.trials,
        "known_rows": known_rows.known_rows,
        "precision": operations.precision,
        "attention_types": operations.attention_types,
        "trunk_pass": operations.trunk_pass,
        "row_reads": row_reads.row_reads,
    }


def run_script(name: str) -> None:
    script, needs_shared = SCRIPTS[name]
    if needs_shared and not SHARED.is_dir():
        print(f"{name}: left out, its data are not beside this clone")
        return
    subprocess.run([sys.executable, *shlex.split(f"benchmarks/{script}")], cwd=ROOT, check=True)


def study(
    name: str, title: str, rows: Sequence[Row], *, missing: bool = False, jobs: int = 1, says: Says | None = None
) -> None:
    """Every row's command over the seeds; figures are means with the smallest and largest. Above the table stands what
    `says` makes of them."""
    known = {row["command"]: row for row in earlier_rows(name)} if missing else {}
    done = {label: known[command_of(line)] for label, line, _ in rows if command_of(line) in known}
    with ThreadPoolExecutor(jobs) as pool:
        waited = [
            pool.submit(measured_row, name, row, jobs) for row in rows if row[0] not in done and has_its_data(row)
        ]
        for future in as_completed(waited):
            row = future.result()
            done[row["row"]] = row
            write(name, title, [done[label] for label, _, _ in rows if label in done], says)


def command_of(line: str) -> str:
    return f"python train.py {line}".strip()


def has_its_data(row: Row) -> bool:
    is_here = SHARED.is_dir() or "experiment=" not in row[1]
    if not is_here:
        print(f"{row[0]}: left out, its data are not beside this clone")
    return is_here


def measured_row(name: str, row: Row, jobs: int) -> dict:
    label, line, seeds = row
    runs = [train(f"{name}-{label}", line, seed, jobs) for seed in seeds]
    measured = [run["measured"] for run in runs]
    stated = {"hardware": measured[0]["hardware"], "date": days(measured)}
    return {"row": label, "command": command_of(line), "jobs": jobs, **stated, "runs": runs}


def earlier_rows(name: str) -> list[dict]:
    """Of the study's last table, each with where and when it was measured."""
    path = RESULTS / f"{name}.json"
    last = json.loads(path.read_text()) if path.exists() else {"rows": []}
    stated = {key: last[key] for key in ("hardware", "date") if key in last}
    return [stated | row for row in last["rows"]]


def train(label: str, line: str, seed: int, jobs: int = 1) -> dict:
    """result.json of the run, with its yardsticks and when it was measured; of several at a time each has its share of
    the cores."""
    run_dir = ROOT / "outputs" / "benchmarks" / f"{as_directory(label)}-{seed}"
    measured, result = cleared(run_dir, command=command_of(line), jobs=jobs), run_dir / "result.json"
    if not result.exists():  # a stopped study goes on where it was
        arguments = [*shlex.split(line), f"seed={seed}", "logger=none", f"hydra.run.dir={run_dir}"]
        share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
        command = [sys.executable, "train.py", *arguments, "resume=auto"]
        subprocess.run(command, cwd=ROOT, check=True, env=os.environ | share)
    yardsticks = run_dir / "yardsticks.json"
    extra = {"yardsticks": json.loads(yardsticks.read_text())} if yardsticks.exists() else {}
    return json.loads(result.read_text()) | {"measured": measured} | extra


def as_directory(label: str) -> str:
    """A name that stands on Hydra's command line as it is."""
    return re.sub(r"[^\w./-]+", "_", label.replace(",", "").replace("'", ""))


def changes(done: Sequence[dict]) -> str:
    """By how much rows differ from the first, seed by seed."""
    base, *others = ([run["test"]["accuracy"] for run in row["runs"]] for row in done)
    largest = [max(abs(a - b) for a, b in zip(base, other, strict=True)) for other in others]
    told = ", ".join(f"{row['row']} {change:.4f}" for row, change in zip(done[1:], largest, strict=True))
    return f"The largest change of a seed's test accuracy beside {done[0]['row']}: {told}."


def gains(done: Sequence[dict]) -> str:
    """Of the adapted model over the other, seed by seed on the same rows."""
    runs, told = {row["row"]: row["runs"] for row in done}, []
    for count in LABELLED_ROWS:
        before, after = (
            [run["test"]["accuracy"] for run in runs.get(f"{count} rows, {kind}", [])]
            for kind in ("as pretrained", "adapted")
        )
        gained = [of_after - of_before for of_before, of_after in zip(before, after, strict=False)]
        if gained:
            told.append(f"{count} rows: test accuracy changes by {spread(gained, '+.4f')}; a seed, other rows.")
    return "\n".join(told)


def behind(done: Sequence[dict]) -> str:
    """The rows whose test score is worse than a yardstick of theirs, `METRIC of ...`."""
    told = []
    for row in done:
        run = row["runs"][0]
        for yardstick, value in run.get("yardsticks", {}).items():
            metric, _, other = yardstick.partition(" of ")
            scores = [score for name, score in run["test"].items() if name == metric]
            is_error = metric.rpartition("/")[2] in ("rmse", "perplexity")
            told += [
                f"{row['row']} ({metric} {score:.3f}, {other} {value:.3f})"
                for score in scores
                if (score > value if is_error else score < value)
            ]
    return f"Behind what needs no GPT-2: {', '.join(told) or 'none'}."


def write(name: str, title: str, done: Sequence[dict], says: Says | None = None) -> None:
    jobs = max(row.get("jobs", 1) for row in done)
    at_a_time, measured_on = f"{jobs} runs at a time; " if jobs > 1 else "", days(done)
    lines = [f"# {title}", "", *([says(done), ""] if says else [])]
    lines += [
        f"{machines(done)}; {at_a_time}{measured_on}; mean over the seeds ± standard deviation (smallest to largest).",
        "",
    ]
    columns = ("", "metric", "test", "validation", "seeds", "frozen blocks", "fit, s", "whole run, s", "command")
    lines += [f"| {' | '.join(columns)} |".replace("|  |", "| |"), "|---" * len(columns) + "|"]
    for row in done:
        runs = row["runs"]
        for metric in reported(runs[0]["test"]):
            test, validation = ([run[stage][metric] for run in runs] for stage in ("test", "validation"))
            seconds = [spread([run["seconds"][stage] for run in runs], ".0f") for stage in ("fit", "total")]
            seeds = ", ".join(str(run["seed"]) for run in runs)
            cells = [row["row"], metric, spread(test, ".4f"), spread(validation, ".4f"), seeds]
            cells += [str(runs[0]["frozen_blocks"]), *seconds]
            lines.append("| " + " | ".join([*cells, f"`{row['command']}`"]) + " |")
    for row in done:
        for yardstick, value in row["runs"][0].get("yardsticks", {}).items():
            line = f"| {row['row']}: {yardstick} | | {value:.4f} | | | | | | printed by the same run |"
            lines.append(line)
    measured = {"hardware": machines(done), "date": measured_on}
    publish(name, lines, {row["row"]: means_of(row["runs"]) for row in done}, kept={"rows": done}, measured=measured)


def machines(done: Sequence[Mapping]) -> str:
    """On which the rows were measured; where they were several, which rows on each but that of most."""
    rows: dict[str, list[str]] = {}
    for row in done:
        rows.setdefault(row["hardware"], []).append(row["row"])
    *others, (most, _) = sorted(rows.items(), key=lambda item: len(item[1]))
    named = [f"{', '.join(labels)} on {machine}" for machine, labels in others]
    return "; ".join([*named, f"all others on {most}" if named else most])


def means_of(runs: Sequence[Mapping]) -> dict[str, float]:
    """Of each test score that is reported, over the seeds."""
    scores = [run["test"] for run in runs]
    return {metric: round(statistics.mean(of_run[metric] for of_run in scores), 4) for metric in reported(scores[0])}


def reported(scores: Mapping[str, float]) -> list[str]:
    """Those of METRICS, in their order, of all parts where there are several."""
    return [name for metric in METRICS for name in scores if name.rpartition("/")[2] == metric]


if __name__ == "__main__":
    main()
