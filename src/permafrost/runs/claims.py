"""A run directory is of one configuration; and where an unfinished run lies."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, read_write

from permafrost.errors import ConfigError
from permafrost.runs.record import Changes, changes_of, finished_result
from permafrost.runs.trials import end_with_parent

if TYPE_CHECKING:
    from hydra.conf import HydraConf

BY_TIME = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-.+")  # the end of a directory that is named by when it began
# What a run may go on with that it was not begun with: how long it trains, on what hardware, where things lie, what is
# told of it. What lies at a path is compared by its content: rows, tokenizer, frozen weights.
FREE = (
    *(
        "resume",
        "resume_allow_changes",
        "save_every",
        "debug",
        "yardsticks",
        "logger",
        "compression",
        "callbacks.progress",
    ),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_minutes", "trainer.requeue", "trainer.log_every_n_steps"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *(
        "model.path",
        "model.tokenizer",
        "data.train",
        "data.validation",
        "data.test",
        "data.cache_dir",
        "data.num_workers",
    ),
    *("store.dir", "store.max_gb"),
)


def check_same(run_dir: Path, cfg: DictConfig) -> Changes:
    """What a run that goes on in `run_dir` changes of the settings that it was begun with.

    Raises:
        ConfigError: more than may change, and `resume_allow_changes` does not allow it.
    """
    changes = changes_of(run_dir / "config.yaml", cfg)
    refused = {key: pair for key, pair in changes.items() if not is_free(key)}
    if refused and not cfg.resume_allow_changes:
        told = "\n".join(f"  {key}: {before} there, {now} here" for key, (before, now) in refused.items())
        raise ConfigError(
            f"{run_dir} was begun with other settings:\n{told}\n"
            "give the same, allow it with resume_allow_changes=true, or set another hydra.run.dir"
        )
    return {key: pair for key, pair in changes.items() if not key.startswith(("resume", "debug"))}


def is_free(key: str) -> bool:
    """Also within a part of task=multi, as `parts.films.data.train`."""
    own = re.sub(r"^parts\.\w+\.", "", key)
    return any(own == free or own.startswith(f"{free}.") for free in FREE)


def is_named_by_time(run_dir: Path) -> bool:
    return BY_TIME.fullmatch("/".join(run_dir.parts[-2:])) is not None


def unfinished_run(cfg: DictConfig, run_dir: Path) -> Path | None:
    """Of the runs beside one that would be named by the time, the latest of these settings that has not ended.

    Found by what is there, so that nothing has to be kept beside the run directories, which may be moved or removed.
    """
    name = run_dir.name.split("-", 3)[3]
    for config in sorted(run_dir.parents[1].glob(f"*/*-{name}/config.yaml"), reverse=True):
        found = config.parent
        if found == run_dir or not is_named_by_time(found) or finished_result(found):
            continue
        if not any(not is_free(key) for key in changes_of(config, cfg)):
            return found
    return None


def directory_of(cfg: DictConfig, job: "HydraConf") -> Path:
    """The one that Hydra made, or that of the run to go on with: named by `resume`, or found by its settings where
    directories are named by the time.

    Raises:
        ConfigError: several processes were started, each of which would have a directory of its own.
    """
    made = Path(job.runtime.output_dir)
    if started_by_lightning():
        end_with_parent()
        return made
    if not is_named_by_time(made):
        return made
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise ConfigError(
            "each process would have a run directory of its own, by the second it started in; "
            "give all of them one: hydra.run.dir=outputs/NAME"
        )
    if cfg.resume == "never":
        return made
    found = unfinished_run(cfg, made) if cfg.resume in ("auto", "must") else Path(cfg.resume)
    if found is None or not (found / "config.yaml").is_file():
        return made
    with suppress(OSError):
        made.rmdir()
    with read_write(job):  # type: ignore[arg-type]
        job.run.dir = str(found)  # where Lightning sends the other processes that it starts
    return found


def started_by_lightning() -> bool:
    """Whether this is one of the processes that a first one has started beside itself."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def same_content(notes: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare what lay at the paths with what lies there.

    Raises:
        ConfigError: the rows or the tokenizer are others than the run was begun with.
    """
    for name, print_there in notes.items():
        if here.get(name) != print_there:
            raise ConfigError(
                f"{name} is not what the run was begun with, so its checkpoint fits no more; "
                "give what it had, or begin another run in another hydra.run.dir"
            )
