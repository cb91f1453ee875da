"""Training through many saves."""

import re
from pathlib import Path
from typing import Any

from faults.tiny_runs import tiny_overrides

SOAK_STEPS = 500


def soak(root: Path) -> list[str]:
    """Handles, threads and memory over many saves."""
    from permafrost.experiment import run
    from permafrost.training.callbacks.resume_point import ResumePoint
    from tests.runs.conftest import compose_config

    seen: list[tuple[int, int, int, int]] = []
    save = ResumePoint._save

    def watched(self: Any, trainer: Any) -> None:
        save(self, trainer)
        status = Path("/proc/self/status").read_text()
        threads, resident = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("Threads", "VmRSS"))
        seen.append((trainer.global_step, len(list(Path("/proc/self/fd").iterdir())), threads, resident // 1024))

    ResumePoint._save = watched  # type: ignore[method-assign]
    own = [f"trainer.max_steps={SOAK_STEPS}", "trainer.max_epochs=1000", "save_every=5", f"store.dir={root}/store"]
    run(compose_config(*tiny_overrides(root), *own, "trainer.val_check_interval=1.0"), root / "run")
    ResumePoint._save = save  # type: ignore[method-assign]
    lines = [
        f"{SOAK_STEPS} steps, {len(seen)} saves.",
        "",
        "| step | open files | threads | resident, MB |",
        "|---" * 4 + "|",
    ]
    shown = [seen[round(share * (len(seen) - 1))] for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    kept = sorted(path.name for path in (root / "run" / "checkpoints").iterdir())
    return [
        *lines,
        *(f"| {' | '.join(map(str, row))} |" for row in shown),
        "",
        f"Left in `checkpoints/`: {', '.join(kept)}.",
    ]
