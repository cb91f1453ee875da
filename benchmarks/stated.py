"""What every table of results states: on what machine, when, and where it is written."""

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = ROOT.parent / "shared" / "data"


def publish(
    name: str,
    lines: Sequence[str],
    figures: Mapping[str, Any],
    *,
    kept: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """results/NAME.md has the lines, NAME.json what is `kept` of the runs; both tables and figures are printed, the
    latter as one line of JSON, the last. `measured` says on what hardware and when, where it was not today."""
    stated = {"study": name, "hardware": hardware(), "date": date.today().isoformat(), **(measured or {})}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    if kept is not None:
        (RESULTS / f"{name}.json").write_text(json.dumps({**stated, **kept}, indent=1) + "\n")
    print("\n".join(lines))
    print(json.dumps(stated | {"figures": figures}))


def hardware() -> str:
    return f"{os.cpu_count()} cores of {cpu()}, Python {platform.python_version()}"


def cpu() -> str:
    """Its name, and whether it has AMX or no AVX-512, which its name does not always say."""
    import torch  # here, as processes that are measured have none

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    if torch.cpu._is_amx_tile_supported():
        return f"{name} with AMX"
    return name if torch.cpu._is_avx512_supported() else f"{name} without AVX-512"


def machine() -> str:
    """What the name of a table ends in whose figures are this CPU's alone: intel_xeon_with_amx."""
    return "_".join(re.findall(r"\w+", re.sub(r"\(\w+\)|processor|cpu|@.*", " ", cpu().lower())))
