"""Figures, drawn without a display."""

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from permafrost.compression.measure import frontier


def freeze_curve(
    scores: Mapping[int, Sequence[float]], metric: str, path: Path, *, higher_is_better: bool = True
) -> None:
    """Every trial's validation score by frozen depth, and a line through the best of each."""
    best = max if higher_is_better else min
    figure, axes = _figure()
    depths = sorted(scores)
    for depth in depths:
        axes.plot([depth] * len(scores[depth]), scores[depth], "o", color="#9bb7d4", markersize=4)
    axes.plot(depths, [best(scores[depth]) for depth in depths], "o-", color="#1f4e79")
    axes.set_xlabel("frozen blocks")
    axes.set_ylabel(f"validation {metric}")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(path)


def curves_svg(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], ylabel: str) -> str:
    """Lines over optimizer steps, as inline SVG. `series`: name -> (steps, values)."""
    figure, axes = _figure()
    for name, (steps, values) in series.items():
        axes.plot(steps, values, "." if len(steps) == 1 else "-", label=name, linewidth=1.5)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _svg(figure)


def confusion_svg(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Rows are the true labels, columns the predicted ones; shade is the share of the row."""
    size = max(4.0, 0.45 * len(labels) + 2)
    figure, axes = _figure(size, size)
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=8)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            if count:
                axes.text(
                    j,
                    i,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if shares[i][j] > 0.5 else "black",
                )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _svg(figure)


def class_bars_svg(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Split -> label -> rows, as each split's share, so that splits of different size can be compared."""
    labels = list(next(iter(counts.values())))
    figure, axes = _figure(height=max(1.5, 0.25 * len(labels) * len(counts) + 1))
    height = 0.8 / len(counts)
    for number, (name, of_split) in enumerate(counts.items()):
        total = max(1, sum(of_split.values()))
        places = [place + number * height for place in range(len(labels))]
        axes.barh(places, [of_split[label] / total for label in labels], height, label=name)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(labels))], [label[:40] for label in labels])
    axes.invert_yaxis()
    axes.set_xlabel("share of the split's rows")
    axes.legend(frameon=False)
    return _svg(figure)


def histogram_svg(edges: Sequence[int], counts: Mapping[str, Sequence[int]], window: int, xlabel: str) -> str:
    """Split -> rows between each two `edges`, as shares, with the model's window as a line."""
    figure, axes = _figure()
    for name, of_split in counts.items():
        total = max(1, sum(of_split))
        axes.stairs([count / total for count in of_split], edges, label=name, linewidth=1.5)
    if window <= edges[-1]:
        axes.axvline(window, color="#b03a2e", linestyle="--", label=f"window of {window:,}")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("share of the split's rows")
    axes.legend(frameon=False)
    return _svg(figure)


def pareto_svg(points: Mapping[str, tuple[float, float]], xlabel: str, ylabel: str, *, higher_is_better: bool) -> str:
    """Versions by (cost, quality), and a line through those that no other beats."""
    figure, axes = _figure()
    sign = 1 if higher_is_better else -1
    best = frontier([cost for cost, _ in points.values()], [sign * quality for _, quality in points.values()])
    for (name, point), is_best in zip(points.items(), best, strict=True):
        axes.plot(*point, "o", color="#1f4e79" if is_best else "#9bb7d4")
        axes.annotate(name, point, xytext=(5, 4), textcoords="offset points", weight="bold" if is_best else "normal")
    line = sorted(point for point, is_best in zip(points.values(), best, strict=True) if is_best)
    axes.plot(*zip(*line, strict=True), "-", color="#1f4e79", linewidth=1)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    return _svg(figure)


def _figure(width: float = 6.0, height: float = 3.5) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
