"""What a finished run left in its directory, read back for reports and dashboards."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a JSON lines file; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def series(metrics: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one logged metric."""
    points = [(row["step"], row[name]) for row in metrics if name in row]
    return [step for step, _ in points], [value for _, value in points]


def most_wrong(predictions: Sequence[Row], count: int) -> list[Row]:
    """Wrong test rows the model was surest of; for a regression, the rows with the largest error."""
    if predictions and "target" in predictions[0]:
        return sorted(predictions, key=lambda row: -abs(row["target"] - row["prediction"]["value"]))[:count]
    wrong = [row for row in predictions if row["label"] != row["prediction"]["label"]]
    return sorted(wrong, key=lambda row: -row["prediction"]["score"])[:count]


def confusion(predictions: Sequence[Row]) -> tuple[list[str], list[list[int]]]:
    """Labels, and counts by true (rows) and predicted label (columns)."""
    counts = Counter((row["label"], row["prediction"]["label"]) for row in predictions)
    labels = sorted({label for pair in counts for label in pair})
    return labels, [[counts[true, predicted] for predicted in labels] for true in labels]
