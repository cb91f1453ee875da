"""Which tests hold which fault of the catalogue."""

import re
from pathlib import Path

from stated import ROOT

FAULTS = 54


def catalogue(root: Path) -> list[str]:
    """Which tests hold which fault, by the numbers in their names: test_8_to_10_..., test_1_and_4_..."""
    found: dict[int, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for first, link, second, name in re.findall(r"def test_(\d+)(?:_(to|and)_(\d+))?_(\w+)", path.read_text()):
            last = int(second or first)
            for number in range(int(first), last + 1) if link != "and" else (int(first), last):
                told = f"{name.replace('_', ' ')} (`{path.relative_to(ROOT)}`)"
                found.setdefault(number, []).append(told)
    without = ", ".join(str(number) for number in range(1, FAULTS + 1) if number not in found)
    lines = [f"Faults 2 and 3 are also the kills above, 53 is the soak. No test has: {without or 'none'}."]
    lines += ["", "| # | what is tested |", "|---|---|"]
    return [*lines, *(f"| {number} | {'; '.join(found[number])} |" for number in sorted(found))]
