"""Where the curves go. `metrics.jsonl` is always written; the others are the `logger=` group."""

import json
import netrc
import os
import sys
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from permafrost.atomic import complete_or_absent
from permafrost.errors import ConfigError
from permafrost.redaction import redacted_text


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


def forgiving_(logger: Logger) -> Logger:
    """A dashboard that fails is told of once and left alone from then on: training is not lost to it."""
    log_metrics = logger.log_metrics

    def log_or_tell(metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            log_metrics(metrics, step)  # type: ignore[arg-type]
        except Exception as error:
            logger.log_metrics = lambda metrics, step=None: None  # type: ignore[method-assign]
            tell_of_failure(logger, error)

    logger.log_metrics = log_or_tell  # type: ignore[method-assign]
    return logger


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
    try:
        return TensorBoardLogger(save_dir=run_dir, name="tensorboard", version="")
    except ModuleNotFoundError:
        raise ConfigError("logger=tensorboard needs its package: pip install 'permafrost[tensorboard]'") from None


def csv(*, run_dir: Path) -> CSVLogger:
    return CSVLogger(save_dir=run_dir, name="csv", version="")


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
