"""One run, from configuration to result."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from permafrost.runs.assembly import (
    Prepared,
    console,
    is_first_process,
    make_models,
    open_stores,
    prepare,
    seed_everything,
)
from permafrost.runs.compress import clear, compress
from permafrost.runs.compressible import check as check_compression
from permafrost.runs.files import write_card, write_run
from permafrost.runs.fitting import (
    close_process_group,
    evaluate_best,
    fit,
    make_modules,
    make_trainer,
    parts_that_fit,
    with_parts_counted,
)
from permafrost.runs.resuming import PARTS, Start, begin, notes_of
from permafrost.runs.writers import check_writer
from permafrost.safety.redaction import redacted
from permafrost.settings.config import read_settings
from permafrost.settings.preflight import preflight
from permafrost.settings.schema import Settings
from permafrost.storage.locks import sole_run
from permafrost.training.stopping import requeue_at_signal

if TYPE_CHECKING:
    import lightning.pytorch as lightning

    from permafrost.training.module import FineTuning

Result = dict[str, Any]


@dataclass
class Clock:
    """Seconds by stage of the run."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("setup", "trunk", "fit", "test"), 0.0))
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def report(self) -> dict[str, float]:
        total = time.perf_counter() - self.started
        return {name: round(value, 3) for name, value in (self.seconds | {"total": total}).items()}


def run(cfg: DictConfig, run_dir: Path, sweep: str | None = None) -> Result:
    """Check the configuration, prepare the data, train, test, export, and write the run directory."""
    clock = Clock()
    with clock.stage("setup"):
        settings = read_settings(cfg)
        preflight(settings, in_sweep=sweep is not None)
        if settings.compression.is_asked:
            check_compression(settings.compression, settings)
        for part in settings.by_part().values():
            check_writer(part)
        if settings.trainer.requeue:
            requeue_at_signal(is_first=is_first_process())
        seed_everything(settings.seed)
        prepared = {name: prepare(part) for name, part in settings.by_part().items()}
    # a trial's directory was locked by its sweep, before it cleared what an earlier start had left there
    with sole_run(run_dir) if is_first_process() and sweep is None else nullcontext():
        try:
            return train_and_test(cfg, settings, prepared, run_dir, clock, sweep)
        except BaseException:  # a signal, too
            close_process_group(only="gloo")
            raise


def train_and_test(
    cfg: DictConfig,
    settings: Settings,
    prepared: Mapping[str, Prepared],
    run_dir: Path,
    clock: Clock,
    sweep: str | None,
) -> Result:
    with clock.stage("setup"):
        start = begin(run_dir, settings, cfg, prepared)
        if is_first_process():
            write_card(run_dir, prepared)
        settings = start.as_decided(settings)
        models = make_models(settings, prepared)
    with clock.stage("trunk"):
        modes = {name: start.as_decided(part, name).store.mode for name, part in settings.by_part().items()}
        stores = open_stores(settings, modes, prepared, models, in_sweep=sweep is not None)
    with clock.stage("setup"):
        module, data = make_modules(settings, prepared, models, stores)
        settings, parts = cut_to_memory_(settings, module, data, start)
        accumulate = data.accumulate(settings.trainer.max_epochs)
        plain_config: Any = redacted(OmegaConf.to_container(cfg, resolve=True))
        notes = notes_of(settings, prepared, stores) | parts
        trainer = make_trainer(
            settings, prepared, run_dir, plain_config, accumulate=accumulate, sweep=sweep, notes=notes
        )
    with clock.stage("fit"):
        fit(trainer, module, data, settings, start.checkpoint)
    with clock.stage("test"):
        scores = evaluate_best(module, data, trainer)
    tokens_computed = sum(of_part.tokens_computed for of_part in stores.values())
    result = describe(settings, module, trainer, scores, clock, tokens_computed)
    answers = answers_to_test_rows(trainer, prepared)  # gathered from all processes: each must call it
    close_process_group()
    if trainer.is_global_zero:
        say_what_was_read(data.tokens_read, tokens_computed)
        write_run(run_dir, settings, prepared, models, result, answers, stores)
        if settings.compression.is_asked:
            clear(run_dir, settings.compression)
            result["compression"] = [compress(run_dir, settings)]
        close_loggers(trainer, run_dir)
    return result


def cut_to_memory_(settings: Settings, module: Any, data: Any, start: Start) -> tuple[Settings, dict[str, int]]:
    """With data.auto_batch batches are cut into the parts that memory holds; how many is noted for a resumed run."""
    if not settings.data.auto_batch:
        return settings, {}
    data.parts_per_batch = start.notes.get(PARTS) or parts_that_fit(settings, module, data)
    return with_parts_counted(settings, data.parts_per_batch), {PARTS: data.parts_per_batch}


def answers_to_test_rows(
    trainer: "lightning.Trainer", prepared: Mapping[str, Prepared]
) -> dict[str, list[dict[str, Any]]]:
    """Of each part, to each test row, in their order; none from a plain language model."""
    from permafrost.training.callbacks.collect import CollectOutputs
    from permafrost.training.callbacks.written_texts import WrittenTexts

    answers: dict[str, list[dict[str, Any]]] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WrittenTexts) and callback.rows["test"]:
            answers[callback.part] = [{"text": text} for text in callback.written["test"]]
        if isinstance(callback, CollectOutputs) and (outputs := callback.in_order(trainer.world_size)):
            part, task = prepared[callback.part], callback.task
            answers[callback.part] = task.answers(outputs, part.rows["test"])
    return answers


def describe(
    settings: Settings,
    module: "FineTuning",
    trainer: "lightning.Trainer",
    scores: dict[str, Any],
    clock: Clock,
    tokens_computed: int,
) -> Result:
    """The contract of result.json."""
    from permafrost.training.hardware import peak_memory_mb
    from permafrost.training.processes import gathered

    trained_tokens = sum(gathered(int(module.trained_tokens), trainer.world_size))
    model: Any = module.model
    parameters = list(model.parameters())
    return {
        "task": settings.task.name,
        "data": "+".join(part.data.name for part in settings.by_part().values()),
        "model": settings.model.name,
        "seed": settings.seed,
        "status": "done",
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "parameters": {
            "total": sum(parameter.numel() for parameter in parameters),
            "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        },
        "frozen_blocks": model.freezing.blocks,
        "seconds": clock.report(),
        "tokens": {"trained": trained_tokens, "trunk": tokens_computed},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "allow_leaks": any(part.data.allow_leaks for part in settings.by_part().values()),
        **scores,
        "compression": [],
    }


def say_what_was_read(tokens_read: int, tokens_computed: int) -> None:
    if tokens_read:
        share = tokens_read / (tokens_read + tokens_computed)
        console.print(f"  store: {tokens_read:,} tokens read, {tokens_computed:,} computed; {share:.1%} was there")


def close_loggers(trainer: "lightning.Trainer", run_dir: Path) -> None:
    """Send the results where the curves went, and end the dashboard run: a sweep's next trial has its own."""
    from lightning.pytorch.loggers import WandbLogger

    from permafrost.reporting.dashboard import log_run
    from permafrost.training.loggers import end_dashboards, tell_of_failure

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            try:
                log_run(logger.experiment, run_dir)
            except Exception as error:  # all is written already
                tell_of_failure(logger, error)
    end_dashboards(exit_code=0)
