"""What compression saves and costs, by the real commands: python benchmarks/compression.py quality|speed [--seeds 5]

`quality`: mini fine-tuned on sst2 and on ag_news, and every way of making it smaller; the test score beside the run's
own and beside the whole model trained for as many epochs more. The two ways that differ by their teacher alone are made
with --seeds seeds and compared seed by seed, the others with the first. `speed`: GPT-2 124M's shape, random weights, as
a classifier and as a writer: megabytes, milliseconds of a request and of a written token, on one thread; all versions
by turns, in --rounds rounds, and ratios within a round. What is finished is kept in outputs/benchmarks/compression,
and made again on other hardware or of other sources. Writes results/compression_STUDY.md and .json, anew with every
part that ends, and prints, last, one line of JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import materials
from kept import cleared, days
from pairs import spelled
from stated import RESULTS, ROOT, hardware

Entry = Mapping[str, Any]  # a version's compression.json
Ways = Mapping[str, str]  # name -> what is typed after `permafrost compress RUN`
OUTPUTS = Path("outputs/benchmarks/compression")
QUIET = "logger=none yardsticks=false"
TOGETHER = "all together"
TAUGHT, ALONE = "half the blocks, distilled", "half the blocks, without a teacher"
AS_MINI = "model.tokenizer=null callbacks=default model.dropout=0"
QUALITY_RUNS = {name: f"experiment={name} {AS_MINI} {QUIET}" for name in ("sst2", "ag_news")}
QUALITY = {
    "int8": "compression=quantization",
    "int4": "compression=quantization compression.quantize.method=int4",
    "int4, trained as such": "compression=qat",
    "half the MLP's width": "compression=mlp_width",
    "half the heads and MLP": "compression=pruning",
    "half the blocks, least influence": "compression=layer_drop compression.recover.epochs=4",
    TAUGHT: "compression=distillation",
    ALONE: "compression=distillation compression.recover.alpha=0",
    "half the blocks, int8": "compression=pipeline",
    "half the weights zero": "compression=sparse",
}
# Which parts go makes no difference to size and speed, so that one batch chooses them and nothing is learned again.
ONCE = "compression.recover.epochs=0 compression.calibration_batches=1"
SPEED = {
    "int8": "compression=quantization compression.calibration_batches=1",
    "int4": "compression=quantization compression.quantize.method=int4 compression.calibration_batches=1",
    "half the MLP's width": f"compression=mlp_width {ONCE}",
    "half the heads and MLP": f"compression=pruning {ONCE}",
    "half the blocks": f"compression=layer_drop compression.drop.choose=evenly {ONCE}",
    "half the blocks, int8": f"compression=pipeline {ONCE}",
}
AS_TRAINED, IN_ONNX_RUNTIME = "as trained", "as trained, in ONNX Runtime"  # what is faster by the program alone
COLUMNS = (("latency_ms", "ms a request", 2), ("token_ms", "ms a token", 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["quality", "speed"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="of quality: runs at a time, each with its share of cores")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.study == "quality":
        quality(options.seeds, options.jobs)
    else:
        speed(options.rounds)


def quality(seeds: int, jobs: int) -> None:
    command = f"python benchmarks/compression.py quality --seeds {seeds}"
    of_runs: dict[str, dict[int, Mapping[str, Entry]]] = {name: {} for name in QUALITY_RUNS}
    with ThreadPoolExecutor(jobs) as pool:
        waited = {
            pool.submit(made_ways, name, run, ways_of(seed), seed, jobs): (name, seed)
            for seed in range(seeds)
            for name, run in QUALITY_RUNS.items()
        }
        for future in as_completed(waited):
            name, seed = waited[future]
            if error := future.exception():  # the others go on
                print(f"{name}, seed {seed}: {error}", flush=True)
                continue
            of_runs[name][seed] = future.result()
            done = {name: by_way(of_seeds) for name, of_seeds in of_runs.items() if 0 in of_seeds}
            compared = taught_less_alone(done)
            sections = [quality_section(name, of_way, compared[name]) for name, of_way in done.items()]
            sections += [[f"## {TOGETHER}", "", said_of(compared[TOGETHER]), ""]] if TOGETHER in compared else []
            measured_on = days(entry for of_way in done.values() for each in of_way.values() for entry in each)
            write("quality", measured_on, command, sections, {"taught_less_alone": compared}, {"runs": done})
    if any(len(of_seeds) < seeds for of_seeds in of_runs.values()):
        raise SystemExit("not all of it is done; what failed stands above, and the same command goes on")
    kept = {name: kept_of(of_way) for name, of_way in done.items()}
    print_last("quality", measured_on, {"taught_less_alone": compared, "kept": kept})


def ways_of(seed: int) -> Ways:
    return QUALITY if seed == 0 else {way: QUALITY[way] for way in (TAUGHT, ALONE)}


def made_ways(name: str, run: str, ways: Ways, seed: int, jobs: int = 1) -> dict[str, Entry]:
    share = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
    environment = os.environ | share
    return {way: made(f"{name}-{seed}", f"{run} seed={seed}", way, line, environment) for way, line in ways.items()}


def made(name: str, run: str, way: str, line: str, environment: Mapping[str, str]) -> Entry:
    """The entry of `compression.json`, kept while the run of which it was made holds, and that run's date."""
    run_dir = OUTPUTS / name
    measured = cleared(run_dir, command=run)
    if not (run_dir / "result.json").exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        command = [sys.executable, "train.py", *run.split(), f"hydra.run.dir={run_dir}"]
        subprocess.run(command, check=True, env=environment)
    summary = version_of(name, way) / "compression.json"
    if not summary.exists():
        program, label = str(Path(sys.executable).with_name("permafrost")), summary.parent.name
        command = [program, "compress", str(run_dir), *line.split(), f"compression.name={label}"]
        subprocess.run(command, check=True, env=environment)
    return json.loads(summary.read_text("utf-8")) | {"date": measured["date"]}


def version_of(name: str, way: str) -> Path:
    if way in (AS_TRAINED, IN_ONNX_RUNTIME):
        return OUTPUTS / name / ("model" if way == AS_TRAINED else "exported/onnx")
    return OUTPUTS / name / "compressed" / way.replace(" ", "_").replace(",", "").replace("'", "")


def by_way(of_seeds: Mapping[int, Mapping[str, Entry]]) -> dict[str, list[Entry]]:
    """Way -> its entries, the first seed's first."""
    return {way: [of_seeds[seed][way] for seed in sorted(of_seeds) if way in of_seeds[seed]] for way in of_seeds[0]}


def taught_less_alone(done: Mapping[str, Mapping[str, Sequence[Entry]]]) -> dict[str, dict[str, Any]]:
    """Of each data set, and of all together where there are several."""
    compared = {name: difference(of_way[TAUGHT], of_way[ALONE]) for name, of_way in done.items()}
    if len(done) > 1:
        taught, alone = ([entry for of_way in done.values() for entry in of_way[way]] for way in (TAUGHT, ALONE))
        compared[TOGETHER] = difference(taught, alone)
    return compared


def difference(these: Sequence[Entry], those: Sequence[Entry]) -> dict[str, Any]:
    """Of two ways' scores, seed by seed: the mean, and where its 95 % interval by Student's t begins and ends."""
    changes = [one["metric"] - other["metric"] for one, other in zip(these, those, strict=True)]
    found: dict[str, Any] = {"pairs": len(changes), "mean": statistics.mean(changes), "changes": changes}
    if len(changes) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(changes) - 1)) * statistics.stdev(changes) / len(changes) ** 0.5
        found["interval"] = [found["mean"] - half, found["mean"] + half]
    return found


def kept_of(of_way: Mapping[str, Sequence[Entry]]) -> dict[str, float]:
    """Way -> the share of the run's own score, the mean over seeds."""
    return {way: statistics.mean(e["metric"] / e["before"]["metric"] for e in each) for way, each in of_way.items()}


def quality_section(name: str, of_way: Mapping[str, Sequence[Entry]], compared: Mapping[str, Any]) -> list[str]:
    first = next(iter(of_way.values()))[0]
    before = first["before"]
    low, high = before["interval"]
    lines = [f"| | seeds | test {first['metric_name']} | of the run's own | interval | dense, as long | MB |"]
    lines += ["|---" * 7 + "|"]
    lines += [f"| {AS_TRAINED} | 1 | {before['metric']:.4f} | | {low:.4f} to {high:.4f} | | {before['size_mb']:.1f} |"]
    kept = kept_of(of_way)
    lines += [quality_row(way, entries, kept[way]) for way, entries in of_way.items()]
    return [f"## {name}", "", *lines, "", said_of(compared), "", *commands(QUALITY_RUNS[name], of_way, QUALITY), ""]


def quality_row(way: str, entries: Sequence[Entry], kept: float) -> str:
    """The interval is that of the rows drawn anew; of several seeds, it is the smallest and the largest score."""
    scores = [entry["metric"] for entry in entries]
    low, high = entries[0]["interval"] if len(entries) == 1 else (min(scores), max(scores))
    controls = [entry["control"] for entry in entries if "control" in entry]
    dense = f"{statistics.mean(controls):.4f}" if controls else ""
    size, before = (statistics.mean(of["size_mb"] for of in each) for each in (entries, [e["before"] for e in entries]))
    cells = [way, str(len(entries)), f"{statistics.mean(scores):.4f}", f"{kept:.1%}", f"{low:.4f} to {high:.4f}"]
    return "| " + " | ".join([*cells, dense, f"{size:.1f} ({size / before:.2f}x)"]) + " |"


def said_of(compared: Mapping[str, Any]) -> str:
    pairs = compared["pairs"]
    over = f"{pairs} pair{'s' * (pairs > 1)} of runs"
    text = f"With a teacher less without one, seed by seed: {compared['mean']:+.4f} over {over}"
    if "interval" in compared:
        low, high = compared["interval"]
        text += f" (95 % interval by Student's t {low:+.4f} to {high:+.4f})"
    return f"{text}."


def speed(rounds: int) -> None:
    command = f"python benchmarks/compression.py speed --rounds {rounds}"
    runs, done = speed_runs(), dict[str, Any]()
    for name, run in runs.items():
        entries = made_ways(name, run, SPEED, 0)
        export(f"{name}-0")
        costs = [round_of(f"{name}-0", number) for number in range(rounds)]
        done[name] = {"entries": entries, "rounds": costs}
        sections = [speed_section(name, runs[name], **of_run) for name, of_run in done.items()]
        ratios = {name: ratios_of(of_run["rounds"]) for name, of_run in done.items()}
        measured_on = days(entry for of_run in done.values() for entry in of_run["entries"].values())
        write("speed", measured_on, command, sections, {"ratios": ratios}, {"runs": done})
    print_last("speed", measured_on, {"ratios": ratios})


def speed_runs() -> dict[str, str]:
    """One optimizer step each: what is measured does not depend on the weights."""
    model, files = f"model=gpt2 model.path={materials.gpt2_shape()}", materials.ag_news(400)
    data = f"data=files data.train={files['train']} data.validation={files['validation']} data.test={files['test']}"
    common = f"{model} {data} trainer.max_steps=1 freezing.blocks=0 callbacks.best=null callbacks.last=null {QUIET}"
    writer = "task=generation data.columns.source=text data.columns.target=label task.monitor=loss"
    return {
        "classifier": common,
        "writer": f"{common} {writer} task.validation_generations=0 task.decoding.max_new_tokens=1",
    }


def export(name: str) -> None:
    directory = version_of(name, IN_ONNX_RUNTIME)
    if not (directory / "checksums.json").exists():  # which is written last
        shutil.rmtree(directory, ignore_errors=True)
        program = str(Path(sys.executable).with_name("permafrost"))
        subprocess.run([program, "export", str(OUTPUTS / name), str(directory), "--to=onnx"], check=True)


def round_of(name: str, number: int) -> dict[str, dict[str, Any]]:
    """What the run and each version of it cost, one after the other; every second round begins with the last."""
    from permafrost.deployment.cost import cost_of

    sides = [AS_TRAINED, IN_ONNX_RUNTIME, *SPEED]
    found: dict[str, dict[str, Any]] = {}
    for side in sides if number % 2 == 0 else sides[::-1]:
        path = OUTPUTS / name / f"round-{number}" / f"{version_of(name, side).name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cost_of(version_of(name, side), threads=1, rows=0)) + "\n")
        found[side] = json.loads(path.read_text())
    return {side: found[side] for side in sides}


def ratios_of(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Version -> figure -> of each round how many times as fast as the run itself."""
    figures = [key for key, *_ in COLUMNS if key in rounds[0][AS_TRAINED]]
    return {
        side: {key: [costs[AS_TRAINED][key] / costs[side][key] for costs in rounds] for key in figures}
        for side in rounds[0]
        if side != AS_TRAINED
    }


def speed_section(
    name: str, run: str, entries: Mapping[str, Entry], rounds: Sequence[Mapping[str, Mapping[str, Any]]]
) -> list[str]:
    """Medians of the rounds, with the smallest and the largest; the last two columns are from `permafrost compress`."""
    columns = [column for column in COLUMNS if column[0] in rounds[0][AS_TRAINED]]
    titles = [part for _, title, _ in columns for part in (title, "times as fast")]
    lines = ["| | MB | " + " | ".join([*titles, "MB resident", "rows/s", "blocks' parameters"]) + " |"]
    lines += ["|---" * (5 + len(titles)) + "|"]
    before, faster = next(iter(entries.values()))["before"], ratios_of(rounds)
    for side, costs in rounds[0].items():
        cells = [side, of_dense(costs, rounds[0][AS_TRAINED], "size_mb", 1)]
        for key, _, digits in columns:
            cells.append(spelled([of_round[side][key] for of_round in rounds], digits))
            cells.append(spelled(faster[side][key], 2) if side in faster else "")
        cells.append(of_dense(costs, rounds[0][AS_TRAINED], "resident_mb", 0))
        entry = before if side == AS_TRAINED else entries.get(side, {})
        cells += [of_dense(entry, before, key, 0) for key in ("rows_per_second", "block_parameters")]
        lines.append("| " + " | ".join(cells) + " |")
    said = (
        f"On one thread; a request is of {rounds[0][AS_TRAINED]['tokens']} tokens. Medians of {len(rounds)} rounds "
        "(smallest to largest), and ratios within a round. Megabytes resident are of the first round; rows a second, "
        "in batches of 32, and parameters are as `permafrost compress` found them."
    )
    return [f"## {name}", "", said, "", *lines, "", *commands(run, entries, SPEED), ""]


def of_dense(costs: Mapping[str, Any], dense: Mapping[str, Any], key: str, digits: int) -> str:
    """The figure and its ratio to that of the run itself; nothing where it was not taken."""
    if key not in costs:
        return ""
    ratio = "" if costs is dense else f" ({costs[key] / dense[key]:.2f}x)"
    return f"{costs[key]:,.{digits}f}{ratio}"


def commands(run: str, of_way: Mapping[str, Any], ways: Ways) -> list[str]:
    compress = [f"permafrost compress RUN {ways[way]}" for way in of_way]
    return ["```bash", f"python train.py {run}", *compress, "```"]


def write(
    study: str,
    measured_on: str,
    command: str,
    sections: Sequence[Sequence[str]],
    found: Mapping[str, Any],
    more: Mapping[str, Any],
) -> None:
    lines = [f"# Compression: {study}", "", f"`{command}`; {hardware()}; {measured_on}.", ""]
    lines += [line for section in sections for line in section]
    path = RESULTS / f"compression_{study}"
    path.with_suffix(".md").write_text("\n".join(lines))
    path.with_suffix(".json").write_text(json.dumps({**stated(study, measured_on), **found, **more}, indent=1) + "\n")
    print("\n".join(lines), flush=True)


def print_last(study: str, measured_on: str, found: Mapping[str, Any]) -> None:
    print(json.dumps({**stated(study, measured_on), **found}))


def stated(study: str, measured_on: str) -> dict[str, str]:
    return {"study": study, "hardware": hardware(), "date": measured_on}


if __name__ == "__main__":
    main()
