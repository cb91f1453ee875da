"""What stands around a run: Hydra's errors in our words, exit codes, and trials that fail alone."""

import errno
import gc
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from permafrost.errors import ConfigError, PermafrostError, ResourceError, TrainingError
from permafrost.safety.redaction import check_no_secret, redacted_text
from permafrost.safety.trust import check_start
from permafrost.settings.composing import with_parts

if TYPE_CHECKING:
    from hydra.conf import HydraConf

Result = dict[str, Any]
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # full, the user's share of it, or read-only


def run_program(main: Callable[[], Any], config_dir: Path) -> None:
    """Run Hydra's main; what is wrong with the command line or a config file ends with exit code 2."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its own words and exits with 1
    signal.signal(signal.SIGTERM, end_now)
    check_arguments(config_dir, sys.argv[1:])
    try:
        main()
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:  # the last: of `# @package`
        from permafrost.settings.overrides import explain

        print(redacted_text(explain(error, sys.argv[1:], config_dir)), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except lost_worker():
        print(
            "error: the process of a trial was killed, as happens where memory runs out; start the sweep again with "
            "the hydra.sweep.dir it began in, and a smaller hydra.launcher.n_jobs",
            file=sys.stderr,
        )
        raise SystemExit(ResourceError.exit_code) from None


def check_arguments(config_dir: Path, arguments: Sequence[str]) -> None:
    """Nothing that names code, and no secret: before any file is composed, and anything written."""
    try:
        if "--allow-leaks" in arguments:
            raise ConfigError("--allow-leaks is an option of permafrost check-data; a run has data.allow_leaks=true")
        check_start(config_dir, arguments)
        for argument in arguments:
            check_no_secret(argument)
    except ConfigError as error:
        print(f"error: {redacted_text(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def end_now(number: int, frame: Any) -> None:
    """Where there is no step to finish first; what is half-written is removed on the way out."""
    raise SystemExit(128 + number)


def lost_worker() -> tuple[type[Exception], ...]:
    """What joblib raises when a worker is gone; not imported for it, since few programs have workers."""
    pool = sys.modules.get("concurrent.futures.process")
    return (pool.BrokenProcessPool,) if pool else ()


def run_job(cfg: DictConfig) -> float | None:
    """One run or one trial: the monitored validation metric; a failure ends the program, but not a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    in_sweep = job.mode == RunMode.MULTIRUN
    result = run_trial(cfg, job) if in_sweep else run_alone(cfg, job)
    if result["status"] == "done":
        return result["validation"][cfg.task.monitor]
    if not in_sweep:
        raise SystemExit(result["exit_code"])
    return None


def run_alone(cfg: DictConfig, job: "HydraConf") -> Result:
    from permafrost.runs.claims import directory_of

    try:
        cfg = with_parts(cfg, config_dir_of(job))
        run_dir = directory_of(cfg, job)
    except ConfigError as error:
        return failure(error, debug=bool(cfg.debug))
    return attempt(cfg, run_dir)


def config_dir_of(job: "HydraConf") -> Path:
    (directory,) = (source.path for source in job.runtime.config_sources if source.provider == "main")
    return Path(directory)


def run_trial(cfg: DictConfig, job: "HydraConf") -> Result:
    """Run one trial of a sweep, if it is not done already, and write down for the sweep's table how it went."""
    from permafrost.reporting.sweep import Trial, record_trial
    from permafrost.runs.trials import settle_worker, worker_number

    if worker_number() is not None:
        settle_worker(mark=f"{job.job.num} | ")
    overrides = list(job.overrides.task)
    print(f"trial {job.job.num}: {' '.join(overrides)}")
    run_dir, sweep_dir = Path(job.runtime.output_dir), Path(job.sweep.dir)
    try:
        cfg = with_parts(cfg, config_dir_of(job))
        result = earlier_or_new(cfg, run_dir, sweep_dir)
    except ConfigError as error:  # in a part: of a run's own settings `attempt` tells
        result = failure(error, debug=bool(cfg.debug))
    trial = Trial(
        number=job.job.num,
        directory=os.path.relpath(run_dir, sweep_dir),
        overrides=as_pairs(overrides),
        monitor=cfg.task.monitor,
        mode=mode_of(cfg) if result["status"] == "done" else "",
        result=result,
    )
    record_trial(trial, sweep_dir)
    return result


def as_pairs(overrides: Sequence[str]) -> dict[str, str]:
    """`~KEY` has no value."""
    parts = (override.lstrip("+").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def mode_of(cfg: DictConfig) -> str:
    from permafrost.tasks.binding import metrics_logged

    kinds = {name: part.task.kind for name, part in cfg.parts.items()} or {"": cfg.task.kind}
    return metrics_logged(kinds)[cfg.task.monitor]


def earlier_or_new(cfg: DictConfig, run_dir: Path, sweep_dir: Path) -> Result:
    from permafrost.storage.locks import sole_run

    try:
        with sole_run(run_dir, key="hydra.sweep.dir"):
            return earlier_result_or_attempt(cfg, run_dir, sweep_dir)
    except Exception as error:  # the directory is another trial's or another process's: nothing may be written there
        return failure(error, debug=bool(cfg.debug))


def earlier_result_or_attempt(cfg: DictConfig, run_dir: Path, sweep_dir: Path) -> Result:
    from permafrost.runs.trials import earlier_result, narrow_devices, worker_number

    if earlier := earlier_result(cfg, run_dir, sweep_dir):
        print(f"  done before, {cfg.task.monitor} {earlier['validation'][cfg.task.monitor]:.4f}: {run_dir}")
        return earlier
    narrow_devices(worker_number() or 0, cfg.trainer.accelerator)
    result = attempt(cfg, run_dir, sweep=sweep_dir.as_posix().removeprefix("outputs/"))
    gc.collect()  # trainer, module and optimizer refer to one another: else several trials' weights pile up
    if result["status"] != "done":
        (run_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def attempt(cfg: DictConfig, run_dir: Path, sweep: str | None = None) -> Result:
    """A run's result, or what there is to say of one that failed."""
    try:
        from permafrost.experiment import run

        return run(cfg, run_dir, sweep)
    except SystemExit as stopped:
        end_dashboards(int(stopped.code or 0))
        from permafrost.runs.assembly import is_first_process

        if is_first_process() and (run_dir / "checkpoints").is_dir():
            print(f"stopped; the same command with resume=auto goes on with it: {run_dir}", file=sys.stderr)
        raise
    except Exception as error:
        failed = failure(error, debug=bool(cfg.get("debug")))
        end_dashboards(failed["exit_code"])
        return failed


def end_dashboards(exit_code: int) -> None:
    if "permafrost.training.loggers" in sys.modules:  # else none was begun
        sys.modules["permafrost.training.loggers"].end_dashboards(exit_code)


def failure(error: Exception, *, debug: bool) -> Result:
    """Print what went wrong, and give it as the result."""
    if debug:
        print(redacted_text("".join(traceback.format_exception(error))), file=sys.stderr)
    if isinstance(error, OSError) and error.errno in DISK:
        what = error.filename or "what the run leaves"
        error = ResourceError(f"cannot write {what}: {error.strerror}; free some space, or set hydra.run.dir")
    code, text, hint = TrainingError.exit_code, f"{type(error).__name__}: {error}", " (debug=true shows where)"
    if isinstance(error, PermafrostError):
        code, text, hint = error.exit_code, str(error), ""
    text = redacted_text(text)
    print(f"error: {text}{hint}", file=sys.stderr)
    return {"status": "failed", "exit_code": code, "error": text}
