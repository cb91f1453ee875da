"""What Weights & Biases gets of a finished run beyond its curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from permafrost.reporting.outcome import Row, answer_of, by_part, most_wrong, read_json, read_lines, true_of
from permafrost.tasks.base import question_of

LIGHT_FILES = ("config.yaml", "result.json", "yardsticks.json", "metrics.jsonl", "predictions.jsonl", "report.html")


def log_run(wandb_run: Any, run_dir: Path) -> None:
    """The confusion matrix, the most wrong test rows, the final scores, and the files of the run directory."""
    result = read_json(run_dir / "result.json")
    predictions = read_lines(run_dir / "predictions.jsonl")
    wandb_run.summary.update({f"final/{name}": value for name, value in result["test"].items()})
    for entry in result["compression"]:
        figures = numbers(entry) | {f"before/{name}": value for name, value in numbers(entry["before"]).items()}
        wandb_run.summary.update({f"compression/{entry['method']}/{name}": value for name, value in figures.items()})
    wandb_run.summary["run_directory"] = str(run_dir)
    for part, rows in by_part(predictions).items():
        log_predictions(wandb_run, rows, f"test/{part}" if part else "test")
    for name in LIGHT_FILES:
        if (run_dir / name).exists():
            wandb_run.save(str(run_dir / name), base_path=str(run_dir), policy="now")


def log_predictions(wandb_run: Any, predictions: Sequence[Row], stage: str) -> None:
    """Of one task: the confusion of its labels, where each row has one, and its most wrong rows."""
    import wandb

    if "label" in predictions[0]:
        labels = sorted({row["label"] for row in predictions})
        number = {label: index for index, label in enumerate(labels)}
        known = [row for row in predictions if row["prediction"]["label"] in number]
        chart = wandb.plot.confusion_matrix(
            y_true=[number[row["label"]] for row in known],
            preds=[number[row["prediction"]["label"]] for row in known],
            class_names=labels,
        )
        wandb_run.log({f"{stage}/confusion_matrix": chart})
    shown = [
        [row["where"], question_of(row)[:500], true_of(row)[:500], answer_of(row)[:500]]
        for row in most_wrong(predictions, 50)
    ]
    wandb_run.log({f"{stage}/most_wrong": wandb.Table(columns=["row", "text", "true", "predicted"], data=shown)})


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in entry.items() if isinstance(value, int | float)}
