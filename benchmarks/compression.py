"""What compression saves and costs, by the real commands: python benchmarks/compression.py quality|speed [--seeds 1]

`quality`: mini fine-tuned on sst2 and on ag_news, and every way of making it smaller; the test score beside the run's
own and beside the whole model trained for as many epochs more. `speed`: GPT-2 124M's shape, random weights, as
a classifier and as a writer: megabytes, milliseconds of a request and of a written token, on one thread. Finished runs
are kept in outputs/benchmarks/compression. Writes results/compression_STUDY.md and .json, and prints, last, one line of
JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import materials
from stated import RESULTS, ROOT, hardware

OUTPUTS = Path("outputs/benchmarks/compression")
QUIET = "logger=none yardsticks=false"
QUALITY_RUNS = {name: f"experiment={name} {QUIET}" for name in ("sst2", "ag_news")}
QUALITY = {
    "int8": "compression=quantization",
    "half the MLP's width": "compression=mlp_width",
    "half the heads and MLP": "compression=pruning",
    "half the blocks, least influence": "compression=layer_drop compression.recover.epochs=4",
    "half the blocks, distilled": "compression=distillation",
    "half the blocks, without a teacher": "compression=distillation compression.recover.alpha=0",
    "half the blocks, int8": "compression=pipeline",
    "half the weights zero": "compression=sparse",
}
ONCE = "compression.recover.epochs=0"
SPEED = {
    "int8": "compression=quantization",
    "half the MLP's width": f"compression=mlp_width {ONCE}",
    "half the heads and MLP": f"compression=pruning {ONCE}",
    "half the blocks": f"compression=layer_drop compression.drop.choose=evenly {ONCE}",
    "half the blocks, int8": f"compression=pipeline {ONCE}",
}
COLUMNS = (("size_mb", "MB", 1), ("latency_ms", "ms a request", 2), ("token_ms", "ms a token", 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["quality", "speed"])
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["HF_HUB_OFFLINE"] = "1"
    runs, ways = (QUALITY_RUNS, QUALITY) if options.study == "quality" else (speed_runs(), SPEED)
    done = {
        name: {
            way: [made(f"{name}-{seed}", f"{run} seed={seed}", way, line) for seed in range(options.seeds)]
            for way, line in ways.items()
        }
        for name, run in runs.items()
    }
    command = f"python benchmarks/compression.py {options.study} --seeds {options.seeds}"
    lines = [f"# Compression: {options.study}", "", f"`{command}`; {hardware()}; {date.today()}.", ""]
    for name, ways_done in done.items():
        lines += [
            f"## {name}",
            "",
            *table(ways_done),
            "",
            "```bash",
            f"python train.py {runs[name]}",
            *map(shown, ways.values()),
            "```",
            "",
        ]
    path = RESULTS / f"compression_{options.study}"
    path.with_suffix(".md").write_text("\n".join(lines))
    stated = {"study": options.study, "hardware": hardware(), "date": date.today().isoformat()}
    path.with_suffix(".json").write_text(json.dumps(stated | {"runs": done}, indent=1) + "\n")
    print("\n".join(lines))
    print(
        json.dumps(
            stated | {"ratios": {name: {way: ratios(each) for way, each in of.items()} for name, of in done.items()}}
        )
    )


def shown(line: str) -> str:
    return f"permafrost compress RUN {line}"


def speed_runs() -> dict[str, str]:
    """One optimizer step each: what is measured does not depend on the weights."""
    model, files = f"model=gpt2 model.path={materials.gpt2_shape()}", materials.ag_news(400)
    data = f"data=files data.train={files['train']} data.validation={files['validation']} data.test={files['test']}"
    common = f"{model} {data} trainer.max_steps=1 freezing.blocks=0 {QUIET}"
    writer = "task=generation data.columns.source=text data.columns.target=label task.monitor=loss"
    return {
        "classifier": common,
        "writer": f"{common} {writer} task.validation_generations=0 task.decoding.max_new_tokens=1",
    }


def made(name: str, run: str, way: str, line: str) -> dict[str, Any]:
    """The entry of `compression.json`, measured once."""
    run_dir, label = OUTPUTS / name, way.replace(" ", "_").replace(",", "").replace("'", "")
    if not (run_dir / "result.json").exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        subprocess.run([sys.executable, "train.py", *run.split(), f"hydra.run.dir={run_dir}"], check=True)
    summary = run_dir / "compressed" / label / "compression.json"
    if not summary.exists():
        shutil.rmtree(summary.parent, ignore_errors=True)
        program = str(Path(sys.executable).with_name("permafrost"))
        subprocess.run([program, "compress", str(run_dir), *line.split(), f"compression.name={label}"], check=True)
    return json.loads(summary.read_text("utf-8"))


def table(ways: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Means over the seeds; in brackets the ratio to the run as it was."""
    first = next(iter(ways.values()))[0]
    columns = [column for column in COLUMNS if column[0] in first]
    lines = [
        f"| | test {first['metric_name']} | interval | dense, as long | " + " | ".join(c[1] for c in columns) + " |"
    ]
    lines.append("|---" * (4 + len(columns)) + "|")
    dense = [statistics.mean(entry["before"][key] for entry in next(iter(ways.values()))) for key, *_ in columns]
    before = statistics.mean(entry["before"]["metric"] for entry in next(iter(ways.values())))
    cells = [f"{value:,.{digits}f}" for value, (_, _, digits) in zip(dense, columns, strict=True)]
    lines.append("| " + " | ".join(["as trained", f"{before:.4f}", "", "", *cells]) + " |")
    return lines + [row(way, entries, columns) for way, entries in ways.items()]


def row(way: str, entries: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, int]]) -> str:
    def mean(key: str) -> float:
        return statistics.mean(entry[key] for entry in entries)

    low, high = (statistics.mean(entry["interval"][end] for entry in entries) for end in (0, 1))
    of_dense = ratios(entries)
    control = f"{mean('control'):.4f}" if "control" in entries[0] else ""
    cells = [f"{mean(key):,.{digits}f} ({of_dense[key]:.2f}x)" for key, _, digits in columns]
    kept = f"{mean('metric'):.4f} ({of_dense['metric']:.1%})"
    return "| " + " | ".join([way, kept, f"{low:.4f} to {high:.4f}", control, *cells]) + " |"


def ratios(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    keys = ["metric", *(key for key, *_ in COLUMNS if key in entries[0])]
    return {key: statistics.mean(entry[key] / entry["before"][key] for entry in entries) for key in keys}


if __name__ == "__main__":
    main()
