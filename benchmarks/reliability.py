"""Runs that are killed, files that are damaged, and what saving costs: python benchmarks/reliability.py

Writes results/reliability.md, a section for each study; with names of studies, those alone. All but `overhead` are made
on a GPT-2 of two blocks, whose runs take seconds: what is tested is when, not how much.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from faults.catalogue import catalogue
from faults.damage import damage
from faults.kills import kills
from faults.overhead import overhead
from faults.processes import processes
from faults.soak import soak
from faults.strangers import strangers
from faults.typos import typos
from stated import RESULTS, ROOT, hardware

STUDIES: dict[str, Callable[[Path], list[str]]] = {
    "kills": kills,
    "damage": damage,
    "processes": processes,
    "overhead": overhead,
    "strangers": strangers,
    "typos": typos,
    "soak": soak,
    "catalogue": catalogue,
}


def main(names: Sequence[str]) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    sys.path.append(str(ROOT))  # for the rows of the tests
    torch.set_num_threads(1)
    for name in names or list(STUDIES):
        with TemporaryDirectory(prefix="reliability-") as directory:
            write(name, STUDIES[name](Path(directory)))


def write(name: str, lines: Sequence[str]) -> None:
    """Put the study's section in place of the one before, or behind the others."""
    path = RESULTS / "reliability.md"
    head = "# Reliability\n\n`python benchmarks/reliability.py`; tests hold the catalogue of faults by its numbers.\n"
    text = path.read_text() if path.exists() else head
    stated = f"{hardware()}; {date.today()}; `python benchmarks/reliability.py {name}`."
    section = "\n".join([f"## {name[0].upper()}{name[1:]}", "", stated, "", *lines, ""])
    kept = [part for part in re.split(r"(?m)^(?=## )", text) if not part.lower().startswith(f"## {name}\n")]
    path.write_text("\n".join([part.rstrip() + "\n" for part in kept] + [section]))
    print(section)
    print(
        json.dumps(
            {"study": f"reliability {name}", "hardware": hardware(), "figures": [line for line in lines if line]}
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
