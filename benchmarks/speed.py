"""How fast we are beside others: python benchmarks/speed.py STUDY [--pairs 5]

STUDY is frozen, second_epoch, seed_noise, default, unfrozen, language_modeling, sweep or tutorial. Each pair runs
`python train.py` and a peer (benchmarks/peers.py) one after the other, on the same rows, weights and recipe; which goes
first alternates.
Finished pairs are kept in outputs/benchmarks/speed, and measured again on other hardware or of other sources. Writes
results/speed_STUDY_CPU.md and .json, and prints the table and, last, one line of JSON.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import materials
from contests import (
    CONTESTS,
    MEASURED_SEEDS,
    TRIALS,
    TUTORIAL_ROWS,
    Contest,
    joined,
    materials_of,
    our_command,
    overridden,
    peer_commands,
    trainer_command,
)
from kept import days, holds, read_kept, record
from pairs import Figure, order, summary, table
from stated import RESULTS, ROOT, machine
from timed import run_side_by_side, run_stamped

from permafrost.training.hardware import is_emulated

Figures = dict[str, Any]
# Tried one after the other before the first pair, each on top of those that paid. torch.compile is not among them: the
# padded lengths vary, and it compiles anew for most of them (peers.py --compile).
BF16 = "--precision bf16"
TRAINER_OPTIONS = (BF16, "--attention eager", "--fused-gelu")
PROBE_ROWS, EVALUATED, PROBES, WORTHWHILE = 64, 16, 3, 0.03  # a gain below 3 % may be chance
EPOCH = Figure("later_epoch_seconds", "an epoch from the second on, with its evaluation, s", 2, compared=True)
EPOCH_LINE = re.compile(r"(?:(\d+) \| )?\s*epoch (\d+)/\d+ ")  # behind the trial's number, of several at work
OUTCOME = (
    Figure("memory_mb", "peak memory, MB", 0, compared=True),
    Figure("tokens_trained", "tokens trained", 0),
    Figure("validation", "validation {metric}", 4),
    Figure("test", "test {metric}", 4),
)
WHOLE = (
    Figure("fit_seconds", "fit, with the trunk pass and each epoch's evaluation, s", 1, compared=True),
    Figure("trunk_seconds", "of it the trunk pass, s", 1),
    EPOCH,
    Figure("process_seconds", "whole process, with start, imports and test, s", 1, compared=True),
    *OUTCOME,
)
LATER_TRAINING = Figure("later_training_epoch_seconds", "the same without its evaluation, s", 2, compared=True)
STUDIES = {
    "frozen": (("frozen",), WHOLE),
    "second_epoch": (("frozen",), (EPOCH, LATER_TRAINING, *OUTCOME)),
    "seed_noise": (("frozen_mini",), WHOLE),
    "default": (("default",), WHOLE),
    "unfrozen": (("unfrozen_gpt2", "unfrozen_mini"), WHOLE),
    "language_modeling": (("unfrozen_language_modeling",), WHOLE),
    "sweep": (("sweep",), WHOLE),
    "tutorial": (("tutorial",), WHOLE),
}
PEER_NAMES = {"trainer": "Transformers Trainer", "tutorial": "tutorial script"}
SAID = """\
`{command}`; {hardware}; {date}; pairs: {pairs}; median (smallest to largest). A ratio is what the peer takes for each
that Permafrost takes, within a pair: above 1 Permafrost is faster, or smaller. Stage times leave out Python's start and
imports. Permafrost's fit begins with an empty activation store and, unless its command leaves them out, writes two
checkpoints an epoch; the peer writes none. Validation is the best epoch's; test is that epoch's (Permafrost's, where it
wrote checkpoints) or the last one's. Here the peer, as Permafrost, has the C library keep the buffers that it
frees, which by itself it does not: that buys speed with resident memory, and both show in its figures.
"""
ALIKE = """\
Both sides have the same weights, rows, tokens, optimizer, schedule and number of epochs. Permafrost's batches hold
2,048 tokens, Trainer's as many rows of mean length, grouped by length; its other settings are those that were fastest
before, over a few rows, by the median of three runs each, by turns and with as many threads.
"""
SWEEP_IS_EXTRAPOLATED = f"""\
Both sides run two trials at a time, with one core each. Trainer's {TRIALS} trials are extrapolated:
{TRIALS // len(MEASURED_SEEDS)} times {len(MEASURED_SEEDS)} runs side by side. A stage's seconds are the sum over all
trials, halved. Memory is that of one process; metrics are those of adamw with cosine.
"""
TUTORIAL_IS_EXTRAPOLATED = f"""\
Both sides have the same weights, rows and number of epochs; the tutorial's script trains all parameters by AdamW at
5e-5 with 8 rows a batch, each padded to 512 tokens. It is extrapolated: the median seconds of its steps over
{TUTORIAL_ROWS["train"]} training and {TUTORIAL_ROWS["validation"]} validation rows, all of one shape, times all rows
and epochs.
"""
CONDITIONS = {"sweep": f"{ALIKE}\n{SWEEP_IS_EXTRAPOLATED}", "tutorial": TUTORIAL_IS_EXTRAPOLATED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000, help="training rows of the ag_news sample")
    parser.add_argument("--ours", default="", help="overrides for our side, such as store=off")
    parser.add_argument("--variant", default="", help="a name for what --ours makes of the study")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the tables go")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    names, figures = STUDIES[options.study]
    write(options, figures, {name: contest_pairs(name, options) for name in names})


def contest_pairs(name: str, options: argparse.Namespace) -> list[Figures]:
    contest = CONTESTS[name]
    material, directory = materials_of(contest, options.rows), materials.OUTPUTS / "speed" / named(name, options)
    settings = best_settings(contest, material) if contest.peer == "trainer" else ""
    return [measured_pair(contest, material, settings, directory, n, options.ours) for n in range(options.pairs)]


def named(name: str, options: argparse.Namespace) -> str:
    return f"{name}_{options.variant}" if options.variant else name


def measured_pair(
    contest: Contest, material: Mapping[str, Any], settings: str, directory: Path, number: int, overrides: str
) -> Figures:
    """Measure the pair, unless the same commands were measured before, on this hardware and of these sources."""
    path, run = directory / f"pair-{number}.json", directory / f"run-{number}"
    commands: dict[str, Any] = {
        "ours": overridden(our_command(contest, material, run, number), overrides),
        "peer": peer_commands(contest, material, number, settings),
    }
    if kept := read_kept(path, commands=commands):
        return kept
    pair: Figures = {"pair": number, "order": order(number), **record(commands=commands)}
    for side in order(number):
        log = directory / f"pair-{number}-{side}.log"
        if side == "ours":
            pair[side] = our_figures(contest, commands["ours"], run, log)
        else:
            pair[side] = peer_figures(contest, commands["peer"], material, log)
    path.write_text(json.dumps(pair, indent=1) + "\n")
    print(f"{directory.name} {number}: {pair['ours']['fit_seconds']:.1f} s, {pair['peer']['fit_seconds']:.1f} s")
    return pair


def best_settings(contest: Contest, material: Mapping[str, Any]) -> str:
    """Of Trainer's options those that make an epoch over a few rows faster; kept for each command."""
    few = f"--epochs 2 --max-train-rows {PROBE_ROWS} --max-validation-rows {EVALUATED} --max-test-rows {EVALUATED}"
    base, path = trainer_command(contest, material, 0, few), materials.OUTPUTS / "speed" / "settings.json"
    name = f"{contest.side_by_side} at a time: {base}"
    known = json.loads(path.read_text()) if path.exists() else {}
    if holds(known.get(name, {})):
        return known[name]["chosen"]
    begun, chosen, tried = record(), "", []
    for option in TRAINER_OPTIONS:
        if option == BF16 and is_emulated("bf16-mixed", "auto"):  # far slower than float32: speed.md
            continue
        together = joined(chosen, option)
        seconds = probed(base, (chosen, together), contest.side_by_side, path.with_suffix(".log"))
        tried.append(seconds)
        if statistics.median(seconds[together]) < statistics.median(seconds[chosen]) * (1 - WORTHWHILE):
            chosen = together
    path.write_text(json.dumps(known | {name: begun | {"chosen": chosen, "epoch_seconds": tried}}, indent=1) + "\n")
    return chosen


def probed(base: str, choices: Sequence[str], side_by_side: int, log: Path) -> dict[str, list[float]]:
    """Seconds of an epoch with each of the choices, by turns; so many at a time, as in the contest."""
    found: dict[str, list[float]] = {choice: [] for choice in choices}
    for turn in range(PROBES):
        for choice in choices if turn % 2 == 0 else choices[::-1]:
            ended = run_side_by_side([joined(base, choice)] * side_by_side, log)
            epochs = [json.loads(lines[-1][1])["epoch_seconds"] for _, lines in ended]
            found[choice].append(statistics.mean(min(seconds[1:]) for seconds in epochs))
    return found


def our_figures(contest: Contest, command: str, run: Path, log: Path) -> Figures:
    """Of one run, or of all trials of a sweep together."""
    shutil.rmtree(run, ignore_errors=True)
    process_seconds, lines = run_stamped(command, log)
    trials = [trial_figures(contest, path) for path in sorted(run.rglob("result.json"))]
    if len(trials) != contest.trials:
        raise SystemExit(f"{len(trials)} of {contest.trials} trials ended; see {log}")
    training = [seconds for trial in trials for seconds in trial["training_epoch_seconds"][1:]]
    for name in ("checkpoints", "model", "activations", "cache"):  # gigabytes
        for path in list(run.rglob(name)):
            shutil.rmtree(path)
    return {
        **combined(trials, contest),
        "process_seconds": process_seconds,
        "later_epoch_seconds": mean(later_epoch_seconds(lines)),
        "later_training_epoch_seconds": mean(training),
    }


def trial_figures(contest: Contest, path: Path) -> Figures:
    """From a run's result.json and what lies beside it."""
    result, config = json.loads(path.read_text()), path.with_name("config.yaml").read_text()
    seconds, stated = result["seconds"], (contest.frozen_blocks, contest.epochs)
    if (result["frozen_blocks"], result["epochs"]) != stated:
        raise SystemExit(f"{path}: frozen blocks and epochs are not {stated}, as the peer's are")
    logged = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
    return {
        "fit_seconds": seconds["trunk"] + seconds["fit"],
        "trunk_seconds": seconds["trunk"],
        "training_epoch_seconds": [line["train/epoch_seconds"] for line in logged if "train/epoch_seconds" in line],
        "memory_mb": result["peak_memory_mb"],
        "tokens_trained": result["tokens"]["trained"],
        "validation": result["validation"][contest.metric],
        "test": result["test"][contest.metric],
        "is_peers_recipe": "torch.optim.AdamW" in config and "schedulers.cosine\n" in config,
    }


def peer_figures(contest: Contest, commands: Sequence[str], material: Mapping[str, Any], log: Path) -> Figures:
    runs = []
    for process_seconds, lines in run_side_by_side(commands, log):
        run = json.loads(lines[-1][1]) | {"process_seconds": process_seconds, "is_peers_recipe": True}
        runs.append(run | {stage: run[stage][contest.metric] for stage in ("validation", "test")})
    if contest.peer == "tutorial":
        return extrapolated(contest, runs[0], material)
    return {
        **combined(runs, contest),
        "later_epoch_seconds": mean([s for run in runs for s in run["epoch_seconds"][1:]]),
        "later_training_epoch_seconds": mean([s for run in runs for s in run["training_epoch_seconds"][1:]]),
    }


def combined(runs: Sequence[Figures], contest: Contest) -> Figures:
    """All trials, by those measured: totals by their mean, the largest memory, metrics of the peer's recipe."""
    seconds, count = ("fit_seconds", "trunk_seconds", "process_seconds"), contest.trials
    counts = dict.fromkeys(seconds, count / contest.side_by_side) | {"tokens_trained": count}
    alike = [run for run in runs if run["is_peers_recipe"]]
    return {
        **{key: count * statistics.mean(run[key] for run in runs) for key, count in counts.items() if key in runs[0]},
        **{key: mean([run[key] for run in alike]) for key in ("validation", "test")},
        "memory_mb": max(run["memory_mb"] for run in runs),
    }


def extrapolated(contest: Contest, run: Figures, material: Mapping[str, Any]) -> Figures:
    """The tutorial's script on all rows and epochs, from the seconds a row took."""
    epoch_seconds = sum(
        run[f"{split}_row_seconds"] * materials.count_rows(material[split]) for split in ("train", "validation")
    )
    fit_seconds = contest.epochs * epoch_seconds
    return {
        "fit_seconds": fit_seconds,
        "later_epoch_seconds": epoch_seconds,
        "process_seconds": run["process_seconds"] - run["fit_seconds"] + fit_seconds,
        "memory_mb": run["memory_mb"],
        "measured": run,
    }


def mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def later_epoch_seconds(lines: Sequence[tuple[float, str]]) -> list[float]:
    """From one epoch's line to the trial's next: training, evaluation and checkpoints of all epochs but the first."""
    ends = defaultdict[str, list[tuple[float, int]]](list)
    for second, line in lines:
        if found := EPOCH_LINE.match(line):
            ends[found[1]].append((second, int(found[2])))
    return [end - start for of_trial in ends.values() for (start, _), (end, epoch) in pairwise(of_trial) if epoch > 1]


def write(options: argparse.Namespace, figures: Sequence[Figure], done: Mapping[str, Sequence[Figures]]) -> None:
    measured = [pair for pairs in done.values() for pair in pairs]
    stated = {"study": options.study, "hardware": measured[0]["hardware"], "date": days(measured)}
    stated |= {"pairs": options.pairs}
    command = shlex.join(["python", "benchmarks/speed.py", *sys.argv[1:]])
    lines = [f"# Speed: {named(options.study, options).replace('_', ' ')}", "", SAID.format(command=command, **stated)]
    lines.append(CONDITIONS.get(options.study, ALIKE))
    for name, pairs in done.items():
        contest, commands = CONTESTS[name], pairs[0]["commands"]
        titled = [replace(figure, title=figure.title.format(metric=contest.metric)) for figure in figures]
        lines += [f"## {contest.title}", "", *table(pairs, titled, PEER_NAMES[contest.peer]), ""]
        lines += ["```bash", commands["ours"], *commands["peer"], "```", ""]
    ratio = {name: summary(pairs, figures) for name, pairs in done.items()}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"speed_{named(options.study, options)}_{machine()}"
    path.with_suffix(".md").write_text("\n".join(lines))
    path.with_suffix(".json").write_text(json.dumps(stated | {"ratio": ratio, "contests": done}, indent=1) + "\n")
    print("\n".join(lines))
    print(json.dumps(stated | {"ratio": ratio}))


if __name__ == "__main__":
    main()
