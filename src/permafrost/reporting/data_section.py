"""What a report says of the data: the data card, with its plots."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from permafrost.data.quality.card import card_lines
from permafrost.reporting.plots import class_bars_svg, histogram_svg
from permafrost.reporting.tables import table

CLASSES_DRAWN = 25


def data_sections(cards: Mapping[str, dict[str, Any]]) -> list[str]:
    """Part by part, where there are several."""
    return [section for name, card in cards.items() for section in _data_section(card, f", {name}" if name else "")]


def _data_section(card: dict[str, Any], named: str) -> Iterator[str]:
    lines = "".join(f"<li>{escape(line)}</li>" for line in card_lines(card))
    yield f"<h2>Data{named}</h2><ul>{lines}</ul>"
    if card["classes"]:
        yield class_bars_svg({name: _first(counts) for name, counts in card["classes"].items()})
    tokens = card["tokens"]
    if tokens["splits"]:
        histograms = {name: split["histogram"] for name, split in tokens["splits"].items()}
        yield histogram_svg(tokens["edges"], histograms, tokens["window"], "tokens of a row")
    if card["problems"]:
        rows = [_problem_row(code, found) for code, found in card["problems"].items()]
        yield table(["", "rows", "what it is", "the first"], rows)
    yield table(["", "an example"], [[one["of"], one["text"]] for one in card["examples"]])


def _first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(list(counts.items())[:CLASSES_DRAWN])


def _problem_row(code: str, found: Mapping[str, Any]) -> Sequence[str]:
    first = found["first"][0]
    place = f"{first['where']}: " if first["where"] else ""
    return [code, f"{found['count']:,}", found["meaning"], f"{place}{first['message']}; {first['fix']}"]
