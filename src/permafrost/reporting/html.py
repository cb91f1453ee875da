"""report.html: one file with the figures, curves and worst errors of a run; opens anywhere, loads nothing."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from permafrost.data.problems import LEAKS_ALLOWED
from permafrost.reporting.data_section import data_sections
from permafrost.reporting.outcome import (
    answer_of,
    by_part,
    confusion,
    measured_alike,
    most_wrong,
    read_json,
    read_lines,
    series,
    true_of,
)
from permafrost.reporting.plots import confusion_svg, curves_svg, pareto_svg
from permafrost.reporting.tables import table
from permafrost.tasks.base import question_of, references_of
from permafrost.tasks.text_scores import signatures

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #e3e8ee }} pre {{ background: #f5f7fa; padding: 1rem; overflow-x: auto }}
svg {{ max-width: 100%; height: auto }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def write_report(run_dir: Path) -> Path:
    """Make report.html from the files of the run directory alone, so that it can be made again at any time."""
    result = read_json(run_dir / "result.json")
    metrics = read_lines(run_dir / "metrics.jsonl")
    predictions = read_lines(run_dir / "predictions.jsonl")
    yardsticks = read_json(run_dir / "yardsticks.json") if (run_dir / "yardsticks.json").exists() else {}
    parts = [_scores(result, yardsticks), _facts(result), *_compressed(result["compression"])]
    parts += [*_curves(metrics), *_errors(predictions)]
    if (run_dir / "data.json").exists():
        parts += data_sections(read_json(run_dir / "data.json"))
    config = (run_dir / "config.yaml").read_text("utf-8")
    parts.append(f"<h2>Configuration</h2><pre>{escape(config)}</pre>")
    title = escape(f"{result['task']} on {result['data']} with {result['model']}")
    path = run_dir / "report.html"
    path.write_text(PAGE.format(title=title, body="\n".join(parts)), "utf-8")
    return path


def _scores(result: Mapping[str, Any], yardsticks: Mapping[str, float]) -> str:
    rows = [
        [name, f"{result['validation'].get(name, float('nan')):.4f}", f"{value:.4f}"]
        for name, value in result["test"].items()
    ]
    rows += [[name, "", f"{value:.4f}"] for name, value in yardsticks.items()]
    leaks = f"<p>{LEAKS_ALLOWED}</p>" if result.get("allow_leaks") else ""
    return "<h2>Scores</h2>" + leaks + table(["", "validation", "test"], rows)


def _facts(result: Mapping[str, Any]) -> str:
    parameters, seconds = result["parameters"], result["seconds"]
    rows = [
        ["epochs, optimizer steps", f"{result['epochs']}, {result['steps']:,}"],
        ["parameters trained", f"{parameters['trainable']:,} of {parameters['total']:,}"],
        ["frozen blocks", str(result["frozen_blocks"])],
        ["tokens trained", f"{result['tokens']['trained']:,}"],
        ["seconds", ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())],
        ["peak memory", f"{result['peak_memory_mb']:,.0f} MiB"],
        ["seed", str(result["seed"])],
    ]
    return "<h2>Run</h2>" + table(["", ""], rows)


def _compressed(entries: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    for alike in measured_alike(entries):
        yield from _compressed_alike(alike)


def _compressed_alike(entries: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Every compressed version beside the run itself; on the plots those are bold that no other beats."""
    name, before = entries[0]["metric_name"], entries[0]["before"]
    versions = {"as trained": before} | {entry["method"]: entry for entry in entries}
    rows = [
        [
            method,
            f"{of['metric']:.4f} ({of['interval'][0]:.4f} to {of['interval'][1]:.4f})",
            f"{of['control']:.4f}" if "control" in of else "",
            f"{of['size_mb']:,.2f}",
            f"{of['latency_ms']:.2f}",
        ]
        for method, of in versions.items()
    ]
    header = ["", f"test {name}", "whole model, trained as long", "MB", f"ms a request, {before['threads']} threads"]
    yield "<h2>Compressed</h2>" + table(header, rows)
    higher_is_better = entries[0]["mode"] == "max"
    for key, label in (("size_mb", "MB on disk"), ("latency_ms", "ms a request")):
        points = {method: (of[key], of["metric"]) for method, of in versions.items()}
        yield pareto_svg(points, label, f"test {name}", higher_is_better=higher_is_better)


def _curves(metrics: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    plots = {
        "loss": ("train/loss", "validation/loss"),
        "gradient norm": ("train/gradient_norm",),
        "tokens per second": ("train/tokens_per_second",),
    }
    for ylabel, names in plots.items():
        lines = {name: points for name in names if (points := series(metrics, name))[0]}
        if lines:
            yield f"<h2>{ylabel.capitalize()}</h2>" + curves_svg(lines, ylabel)


def _errors(predictions: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Part by part, where there are several."""
    for name, rows in by_part(predictions).items():
        yield from _errors_of_part(rows, f", {name}" if name else "")


def _errors_of_part(predictions: Sequence[Mapping[str, Any]], named: str) -> Iterable[str]:
    if "label" in predictions[0]:
        labels, matrix = confusion(predictions)
        yield f"<h2>Confusion on test{named}</h2>" + confusion_svg(matrix, labels)
    rows = [
        [row["where"], true_of(row)[:300], answer_of(row)[:300], question_of(row)[:300]]
        for row in most_wrong(predictions, 20)
    ]
    are_written = "text" in predictions[0]["prediction"]
    title = "Written for test rows" if are_written else "Most wrong test rows"
    yield f"<h2>{title}{named}</h2>" + table(["row", "true", "predicted", "text"], rows)
    if are_written:
        texts, references = zip(*((row["prediction"]["text"], references_of(row)) for row in predictions), strict=True)
        signed = signatures(texts, references)
        yield "".join(f"<p>{escape(f'{name} by sacrebleu: {how}')}</p>" for name, how in signed.items())
