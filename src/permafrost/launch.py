"""What stands around a run: Hydra's errors in our words, exit codes, and trials that fail alone."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from permafrost.errors import PermafrostError, TrainingError


def run_program(main: Callable[[], Any], config_dir: Path) -> None:
    """Run Hydra's main; what is wrong with the command line or a config file ends with exit code 2."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own words and exits with 1
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        from permafrost.overrides import explain

        print(explain(error, sys.argv[1:], config_dir), file=sys.stderr)
        raise SystemExit(2) from None


def run_job(cfg: DictConfig) -> float | None:
    """One run, or one trial of a sweep: the monitored test metric; a failure ends the program, but not a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    run_dir = Path(job.runtime.output_dir)
    in_sweep = job.mode == RunMode.MULTIRUN
    sweep = Path(job.sweep.dir).as_posix().removeprefix("outputs/") if in_sweep else None
    try:
        from permafrost.experiment import run

        return run(cfg, run_dir, sweep)["validation"][cfg.task.monitor]
    except Exception as error:
        code = explain_failure(error, debug=bool(cfg.get("debug")))
        if "permafrost.training.loggers" in sys.modules:  # else no dashboard was begun
            sys.modules["permafrost.training.loggers"].end_dashboards(code)
        if not in_sweep:
            raise SystemExit(code) from None
        record_failure(run_dir, error, code)
        return None


def explain_failure(error: Exception, *, debug: bool) -> int:
    """Print what went wrong; returns the exit code."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, PermafrostError):
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"error: {type(error).__name__}: {error} (debug=true shows where)", file=sys.stderr)
    return TrainingError.exit_code


def record_failure(run_dir: Path, error: Exception, code: int) -> None:
    import json

    run_dir.mkdir(parents=True, exist_ok=True)
    failure = {"status": "failed", "exit_code": code, "error": str(error)}
    (run_dir / "result.json").write_text(json.dumps(failure, indent=2) + "\n", "utf-8")
