"""What a finished run left in its directory, read back for reports and dashboards."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from permafrost.tasks.spans import spans_of

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


def measured_alike(entries: Sequence[Row]) -> list[list[Row]]:
    """Compressed versions in groups that can be compared: by one metric, on as many threads."""
    groups: dict[Any, list[Row]] = {}
    for entry in entries:
        groups.setdefault((entry["metric_name"], entry["threads"]), []).append(entry)
    return list(groups.values())


def by_part(predictions: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each of several tasks; of one alone under the name ""."""
    parts: dict[str, list[Row]] = {}
    for row in predictions:
        parts.setdefault(row.get("part", ""), []).append(row)
    return parts


def most_wrong(predictions: Sequence[Row], count: int) -> list[Row]:
    """Test rows by the size of their error; of wrong labels the surest first; of written texts the first rows."""
    wrong = [row for row in predictions if error_of(row) > 0]
    return sorted(wrong, key=lambda row: -error_of(row))[:count]


def error_of(row: Row) -> float:
    answer = row["prediction"]
    if "target" in row:
        return abs(row["target"] - answer["value"])
    if "label" in row:
        return 0.0 if row["label"] == answer["label"] else answer["score"]
    if "labels" in row:
        return len(set(row["labels"]) ^ set(answer["labels"]))
    if "acts" in row:
        return sum(true != given for true, given in zip(row["acts"], answer["acts"], strict=True))
    if "tags" in row:
        return len(set(true_spans(row)) ^ set(named_spans(answer["spans"])))
    return 1.0  # what is written is shown as it comes


def true_of(row: Row) -> str:
    if "tags" in row:
        return "; ".join(true_spans(row))
    if "acts" in row:
        return ", ".join(row["acts"])
    if "turns" in row:
        return row["turns"][-1]
    if "labels" in row:
        return ", ".join(row["labels"])
    return str(row.get("label", row.get("target", " | ".join(row.get("references", [])))))


def answer_of(row: Row) -> str:
    answer = row["prediction"]
    if "value" in answer:
        return f"{answer['value']:.3f}"
    if "spans" in answer:
        return "; ".join(named_spans(answer["spans"]))
    if "labels" in answer or "acts" in answer:
        return ", ".join(answer.get("labels") or answer.get("acts") or [])
    return answer.get("text", "") if "text" in answer else f"{answer['label']} ({answer['score']:.2f})"


def true_spans(row: Row) -> list[str]:
    """`TYPE: words` of each."""
    words = row["tokens"]
    return [f"{kind}: {' '.join(words[first : last + 1])}" for kind, first, last in spans_of(row["tags"])]


def named_spans(spans: Sequence[Row]) -> list[str]:
    return [f"{span['type']}: {span['text']}" for span in spans]


def confusion(predictions: Sequence[Row]) -> tuple[list[str], list[list[int]]]:
    """Labels, and counts by true (rows) and predicted label (columns)."""
    counts = Counter((row["label"], row["prediction"]["label"]) for row in predictions)
    labels = sorted({label for pair in counts for label in pair})
    return labels, [[counts[true, predicted] for predicted in labels] for true in labels]
