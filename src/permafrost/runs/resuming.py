"""Where a run begins: anew, or at the checkpoint of an earlier start, with what that start had found and decided."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from permafrost.errors import ConfigError, ResourceError
from permafrost.runs.assembly import Prepared, console, is_first_process, precision_of
from permafrost.runs.claims import check_same, same_content
from permafrost.runs.record import Changes, to_write
from permafrost.settings.schema import Settings
from permafrost.storage.atomic import complete_or_absent, remove_partial

if TYPE_CHECKING:
    from permafrost.training.trunk_pass import Stores


PARTS = "parts_per_batch"  # key of the notes, where data.auto_batch has cut batches


@dataclass(frozen=True, kw_only=True)
class Start:
    """A checkpoint, or None to begin anew; and what its run noted in it."""

    checkpoint: Path | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    logs: Mapping[str, int] = field(default_factory=dict)  # bytes of each at the checkpoint

    def as_decided(self, settings: Settings, part: str = "") -> Settings:
        """What `auto` had measured, the type of numbers and the use of the store, stays as it was: another measurement
        may come out otherwise, and numbers are rounded otherwise then."""
        if self.checkpoint is None:
            return settings
        trainer, store = settings.trainer, settings.store
        if trainer.precision == "auto":
            trainer = trainer.model_copy(update={"precision": self.notes["precision"]})
        if store.mode == "auto" and part in self.notes["stored"]:
            store = store.model_copy(update={"mode": "on" if self.notes["stored"][part] else "off"})
        return settings.model_copy(update={"trainer": trainer, "store": store})


def begin(run_dir: Path, settings: Settings, cfg: DictConfig, prepared: Mapping[str, Prepared]) -> Start:
    """Make the run directory this run's own, and find what it goes on from.

    Raises:
        ConfigError: the directory holds a run that is not to be resumed, or one of other settings or data.
        DataError: all of its checkpoints are damaged.
        ResourceError: there is nothing to go on from, and there must be.
    """
    from permafrost.training.loggers import cut_back_logs

    changes = check_claim(run_dir, settings, cfg) if is_first_process() else {}
    start = start_of(settings.resume, run_dir)
    if start.checkpoint is not None:
        same_content(start.notes["content"], content_of(prepared))
        check_parts(start, settings)
    if is_first_process():
        claim(run_dir, cfg, changes)
    if not settings.trainer.deterministic:
        console.print(
            "  trainer.deterministic=false: kernels may add in any order, and a resumed run is exact to rounding"
        )
    if start.checkpoint is not None:
        console.print(f"  resuming from {start.checkpoint}", markup=False)
    if is_first_process():
        cut_back_logs(run_dir, start.logs)  # of a start that ended before its first checkpoint all is forgotten
    return start


def check_parts(start: Start, settings: Settings) -> None:
    """What is done of an epoch is counted in the parts that batches were cut into.

    Raises:
        ConfigError: the run was begun with data.auto_batch and goes on without, or the other way round.
    """
    begun = PARTS in start.notes
    if begun != settings.data.auto_batch:
        raise ConfigError(
            f"data.auto_batch={str(settings.data.auto_batch).lower()}: the run was begun with {str(begun).lower()}, by "
            "which its batches are counted; give the same, or begin anew in another hydra.run.dir"
        )


def check_claim(run_dir: Path, settings: Settings, cfg: DictConfig) -> Changes:
    """How the configuration differs from the one that the run there was begun with.

    Raises:
        ConfigError: more than may change, or the run is not to be gone on with.
    """
    if (run_dir / "config.yaml").exists() and settings.resume == "never":
        raise ConfigError(f"{run_dir} already holds a run; continue it with resume=auto, or set another hydra.run.dir")
    return check_same(run_dir, cfg)


def claim(run_dir: Path, cfg: DictConfig, changes: Changes) -> None:
    """Write the configuration there, after all that may be refused; remove what a killed process left half-written."""
    try:
        remove_partial(run_dir)
        with complete_or_absent(run_dir / "config.yaml") as partial:
            partial.write_text(to_write(cfg), "utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write to the run directory {run_dir}: {error.strerror}") from error
    console.print(f"  -> {run_dir}", markup=False)
    for key, (before, now) in changes.items():
        console.print(f"  {key}={now}, and {before} before", markup=False)


def start_of(resume: str, run_dir: Path) -> Start:
    """never: anew; auto: this run directory's newest whole checkpoint, if any; must: that or an error; PATH: of that
    run, or that file."""
    from permafrost.training.callbacks.resume_point import state_in
    from permafrost.training.checkpoints import newest_good

    if resume == "never":
        return Start()
    path = run_dir if resume in ("auto", "must") else Path(resume)
    checkpoint, damaged = newest_good(path)
    for line in damaged:
        console.print(f"  {line}; going on from {checkpoint}", markup=False)
    if checkpoint is None:
        if resume != "auto":
            raise ResourceError(
                f"resume={resume}: no checkpoint in {path}; resume=auto begins anew where there is none"
            )
        return Start()
    state = state_in(checkpoint)
    return Start(checkpoint=checkpoint, notes=state["notes"], logs=state["logs"])


def notes_of(settings: Settings, prepared: Mapping[str, Prepared], stores: Mapping[str, "Stores"]) -> dict[str, Any]:
    """What a later start cannot find out again, or has to compare."""
    return {
        "precision": precision_of(settings),
        "stored": {name: bool(of_part.by_split) for name, of_part in stores.items()},
        "content": content_of(prepared),
    }


def content_of(prepared: Mapping[str, Prepared]) -> dict[str, str]:
    """Fingerprints of what lies at the paths that the configuration names, by what a message calls it."""
    from permafrost.tasks.preparation import tokenizer_fingerprint

    found: dict[str, str] = {}
    for name, part in prepared.items():
        of = f" of {name}" if name else ""
        found |= {f"the {split} split{of}": rows.fingerprint for split, rows in part.rows.items()}
        found[f"the tokenizer{of}"] = tokenizer_fingerprint(part.encoding.tokenizer)
    return found
