"""Where the curves go. `metrics.jsonl` is always written; the others are the `logger=` group."""

import json
import netrc
import os
import shutil
import sys
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from permafrost.errors import ConfigError
from permafrost.safety.redaction import redacted_text
from permafrost.storage.atomic import complete_or_absent

METRICS, EVENTS = "metrics.jsonl", "tensorboard/events.*"  # files that grow with what is logged


def growing_logs(run_dir: Path) -> Iterable[Path]:
    return (path for pattern in (METRICS, EVENTS) for path in run_dir.glob(pattern))


def sizes_of_logs(run_dir: Path) -> dict[str, int]:
    """By path within the run directory."""
    return {str(path.relative_to(run_dir)): path.stat().st_size for path in growing_logs(run_dir)}


def cut_back_logs(run_dir: Path, sizes: Mapping[str, int]) -> None:
    """Forget what was logged after they had these sizes, as it will be logged again; others were not there yet."""
    for path in growing_logs(run_dir):
        kept = sizes.get(str(path.relative_to(run_dir)))
        if kept is None:
            path.unlink()
        elif path.stat().st_size > kept:
            os.truncate(path, kept)


class MetricsFile(Logger):
    """Appends one JSON object per logged step to a file."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run's config.yaml holds them."""


WRITING = ("log_hyperparams", "log_metrics", "save", "finalize")  # a full disk is met in any of them


def forgiving_(logger: Logger) -> Logger:
    """A dashboard that fails is told of once and left alone from then on: training is not lost to it."""
    for name in WRITING:
        setattr(logger, name, left_alone_on_failure(logger, getattr(logger, name)))
    return logger


def left_alone_on_failure(logger: Logger, method: Callable[..., None]) -> Callable[..., None]:
    def call(*arguments: Any, **options: Any) -> None:
        try:
            method(*arguments, **options)
        except Exception as error:
            for name in WRITING:
                setattr(logger, name, lambda *arguments, **options: None)
            tell_of_failure(logger, error)

    return call


def tell_of_failure(logger: Logger, error: Exception) -> None:
    told = redacted_text(f"{type(logger).__name__} fails and is left alone: {type(error).__name__}: {error}")
    print(f"  {told}; metrics.jsonl has the curves", file=sys.stderr)


def wandb(*, project: str, mode: str, run_dir: Path, name: str, group: str | None = None) -> WandbLogger:
    """Weights & Biases. `mode=auto` is online for a user who is logged in and offline for everybody else.

    A run that goes on in its directory goes on in its dashboard run, too.
    """
    import wandb as client

    offline = mode == "offline" or (mode == "auto" and not wandb_login())
    settings = client.Settings(silent=True, show_warnings=False, console="off", x_disable_stats=True)
    client.setup(settings)  # before init, which would say what it does
    run = None
    if getattr(rank_zero_only, "rank", 0) == 0:
        run = client.init(
            project=project,
            name=name,
            group=group,
            dir=run_dir,
            mode="offline" if offline else "online",
            id=wandb_id(run_dir),
            resume=None
            if offline
            else "allow",  # offline there is nothing to ask; `wandb sync --append` joins the parts
            settings=settings,
        )
    return WandbLogger(project=project, save_dir=run_dir, offline=offline, experiment=run)


def wandb_id(run_dir: Path) -> str:
    """The same for all starts of a run."""
    path = run_dir / "wandb" / "run_id"
    if not path.exists():
        with complete_or_absent(path) as partial:
            partial.write_text(uuid.uuid4().hex[:8], "utf-8")
    return path.read_text("utf-8")


def end_dashboards(exit_code: int) -> None:
    """End the W&B run of this process, if there is one, with the run's own exit code."""
    if client := sys.modules.get("wandb"):
        client.finish(exit_code=exit_code)


def tensorboard(*, run_dir: Path) -> TensorBoardLogger:
    goes_on = any(run_dir.glob(EVENTS))  # with the events of earlier starts, hyper-parameters among them
    try:
        return TensorBoardLogger(save_dir=run_dir, name="tensorboard", version="", default_hp_metric=not goes_on)
    except ModuleNotFoundError:
        raise ConfigError("logger=tensorboard needs its package: pip install -e '.[tensorboard]'") from None


def csv(*, run_dir: Path) -> CSVLogger:
    """Begins with what metrics.jsonl has of earlier starts, where Lightning's own would begin with nothing."""
    logger = CSVLogger(save_dir=run_dir, name="csv", version="")
    if getattr(rank_zero_only, "rank", 0) == 0:
        shutil.rmtree(logger.log_dir, ignore_errors=True)  # else it warns that it will empty it
        logger.experiment.metrics += read_metrics(run_dir / METRICS)
    return logger


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def wandb_login() -> bool:
    """Whether W&B has a key or a mode of the user's own; asks nobody."""
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"] == "online"
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
