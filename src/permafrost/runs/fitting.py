"""Training: its modules, its trainer, a fit within the memory that there is, and the scores of the best weights."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permafrost.errors import ConfigError, TrainingError
from permafrost.runs.assembly import Prepared, console, precision_of
from permafrost.safety.building import build
from permafrost.settings.preflight import has_several_processes, monitor_mode, monitored
from permafrost.settings.schema import Settings

if TYPE_CHECKING:
    import lightning.pytorch as lightning

    from permafrost.model.activation_store import ActivationStore
    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.tasks.base import LossSum
    from permafrost.training.datamodule import DataModule
    from permafrost.training.module import FineTuning
    from permafrost.training.trunk_pass import Stores


def make_modules(
    settings: Settings,
    prepared: Mapping[str, Prepared],
    models: Mapping[str, "GPT2WithHead"],
    stores: Mapping[str, "Stores"],
    *,
    taught: "LossSum | None" = None,
    of_teacher: "ActivationStore | None" = None,
) -> tuple["FineTuning", "DataModule"]:
    """`taught` is learned in place of the tasks' own losses; `of_teacher` is what it reads of the training rows."""
    from permafrost.model.several import Several
    from permafrost.runs.weighing import weighted_loss
    from permafrost.training.module import FineTuning, Part

    data = make_data_module(settings, prepared, stores, of_teacher)
    num_blocks = next(iter(models.values())).transformer.config.n_layer
    parts = {
        name: Part(models[name], prepared[name].task, build(weighted_loss(of_part, prepared[name])), taught)
        for name, of_part in settings.by_part().items()
    }
    module = FineTuning(
        Several(models) if settings.parts else models[""],
        parts,
        make_optimizer=partial(make_optimizer, settings, num_blocks),
        make_schedulers=partial(
            make_schedulers, settings, data.total_steps(settings.trainer.max_epochs, settings.trainer.max_steps)
        ),
        monitor=monitored(settings),
        compile=settings.model.compile,
    )
    return module, data


def make_data_module(
    settings: Settings,
    prepared: Mapping[str, Prepared],
    stores: Mapping[str, "Stores"],
    of_teacher: "ActivationStore | None" = None,
) -> "DataModule":
    from permafrost.data.tokens.batching import RowBatching, TokenBatching
    from permafrost.training.datamodule import DataModule
    from permafrost.training.hardware import loader_workers

    options = settings.data
    by_tokens = TokenBatching(max_tokens=options.max_tokens_per_batch)
    return DataModule(
        {name: part.splits for name, part in prepared.items()},
        {name: of_part.by_split for name, of_part in stores.items()},
        batching=RowBatching(batch_size=options.batch_size) if options.batch_size else by_tokens,
        evaluation_batching=by_tokens,
        accumulate=settings.trainer.accumulate_grad_batches,
        num_workers=loader_workers(options.num_workers, settings.trainer.accelerator),
        seed=settings.seed,
        temperature=settings.task.mixing_temperature,
        of_teacher=of_teacher,
        row_weights={name: part.row_weights for name, part in prepared.items() if part.row_weights is not None},
    )


def make_optimizer(settings: Settings, num_blocks: int, model: Any) -> Any:
    from permafrost.training.optimizers import clippable_, parameter_groups

    groups = parameter_groups(
        model,
        num_blocks,
        lr=settings.optimizer["lr"],
        weight_decay=settings.optimizer.get("weight_decay", 0.0),
        layer_lr_decay=settings.freezing.layer_lr_decay,
    )
    return clippable_(build(settings.optimizer, groups))


def make_schedulers(settings: Settings, total_steps: int, optimizer: Any) -> list[Any]:
    try:
        made = build(settings.scheduler, optimizer, total_steps, mode=monitor_mode(settings))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return made if isinstance(made, list) else [made]


def make_trainer(
    settings: Settings,
    prepared: Mapping[str, Prepared],
    run_dir: Path,
    plain_config: dict[str, Any],
    *,
    accumulate: int,
    sweep: str | None,
    more_callbacks: Sequence[Any] = (),
    notes: Mapping[str, Any] | None = None,
) -> "lightning.Trainer":
    """`notes` go into each checkpoint, for the start that goes on from it."""
    from permafrost.training.checkpoints import CHECKPOINTS
    from permafrost.training.hardware import is_emulated
    from permafrost.training.loggers import METRICS, MetricsFile, forgiving_
    from permafrost.training.trainer import make_trainer

    precision = precision_of(settings)
    console.print(f"  precision {precision}")
    if is_emulated(precision, settings.trainer.accelerator):
        console.print("  this CPU has no products in bfloat16: trainer.precision=32-true is many times as fast")
    known = {"monitor": monitored(settings), "mode": monitor_mode(settings), "dirpath": run_dir / CHECKPOINTS}
    known["of_parts"] = [f"validation/{name}/{part.task.monitor}" for name, part in settings.by_part().items() if name]
    known |= {"save_every": settings.save_every, "requeue": settings.trainer.requeue, "notes": notes}
    known["rows"] = {name: part.rows["train"] for name, part in prepared.items()}
    callbacks = [
        build(node, **known)
        for node in settings.callbacks.values()
        if node is not None and (console.is_terminal or not node["_target_"].endswith("RichProgressBar"))
    ]
    for name, part in settings.by_part().items():
        callbacks += callbacks_of_task(name, part, prepared[name])
    callbacks += more_callbacks
    loggers: list[Any] = [MetricsFile(run_dir / METRICS)]
    loggers += [
        forgiving_(build(node, run_dir=run_dir, name=run_dir.name, group=sweep))
        for node in settings.logger.values()
        if node is not None
    ]
    for logger in loggers:
        logger.log_hyperparams(plain_config)
    options = settings.trainer.model_dump() | {"accumulate_grad_batches": accumulate}
    # A batch is of one part, and the heads of the others have no loss in it.
    if settings.parts and options["strategy"] in ("auto", "ddp") and has_several_processes(settings):
        options["strategy"] = "ddp_find_unused_parameters_true"
    return make_trainer(options, run_dir=run_dir, precision=precision, callbacks=callbacks, loggers=loggers)


def callbacks_of_task(name: str, settings: Settings, prepared: Prepared) -> list[Any]:
    """What keeps the answers to a part's test rows, if there are any: as texts that the task writes, or as outputs. Of
    a language model, which has none, a text is gone on with."""
    from permafrost.tasks.base import Answers, Writes, WritesAnswers
    from permafrost.training.callbacks.collect import CollectOutputs
    from permafrost.training.callbacks.written_texts import WrittenTexts

    if isinstance(prepared.task, Answers):
        return [CollectOutputs(name, prepared.task)]
    if not isinstance(prepared.task, Writes):
        return []
    is_scored, count = isinstance(prepared.task, WritesAnswers), settings.task.validation_generations
    sample = list(islice(prepared.rows["validation"], count if is_scored else min(count, 1)))
    test = list(prepared.rows["test"]) if is_scored else []
    return [WrittenTexts(name, prepared.task, prepared.encoding, validation=sample, test=test)]


def fit(
    trainer: "lightning.Trainer",
    module: "FineTuning",
    data: "DataModule",
    settings: Settings,
    checkpoint: Path | None = None,
) -> None:
    from permafrost.training.memory import told_what_to_set

    tokens, tries_first = settings.data.max_tokens_per_batch, settings.data.auto_batch
    with told_what_to_set(module, tokens, tries_first=tries_first):
        trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)


def evaluate_best(module: Any, data: Any, trainer: "lightning.Trainer") -> dict[str, dict[str, float]]:
    """Scores of the best weights on validation and test."""
    from permafrost.training.checkpoints import restore_best_

    restore_best_(module, trainer)
    scores = {
        "validation": trainer.validate(module, data, verbose=False)[0],
        "test": trainer.test(module, data, verbose=False)[0],
    }
    named = {
        stage: {name.removeprefix(f"{stage}/"): value for name, value in logged.items() if name.startswith(f"{stage}/")}
        for stage, logged in scores.items()
    }
    if not math.isfinite(named["validation"]["loss"]):
        raise TrainingError(
            f"the run diverged: validation loss {named['validation']['loss']} after {trainer.global_step:,} steps; "
            "lower optimizer.lr, or clip more with trainer.gradient_clip_val"
        )
    return named


def close_process_group(only: str | None = None) -> None:
    """Close the process group, where there is one: left open, a thread of gloo's can abort the process while Python
    exits. After a failure only gloo's is closed, as other backends would wait for the other processes."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized() and only in (None, distributed.get_backend()):
        distributed.destroy_process_group()


def parts_that_fit(settings: Settings, module: "FineTuning", data: "DataModule") -> int:
    from permafrost.training.hardware import resolve_device
    from permafrost.training.memory import fit_in_memory_

    device = resolve_device(settings.trainer.accelerator)
    values = 4 if settings.callbacks.get("average") else 2  # it, and the weights while it stands in their place
    parts = fit_in_memory_(module, data, precision_of(settings), device, values=values)
    if parts > 1:
        console.print(
            f"  memory holds a batch in {parts} parts: trainer.accumulate_grad_batches is {parts} times as many"
        )
    return parts


def with_parts_counted(settings: Settings, parts: int) -> Settings:
    """Where validation comes after a count of batches, as many batches are so many parts."""
    every = settings.trainer.val_check_interval
    counted = every * parts if isinstance(every, int) else every
    return settings.model_copy(update={"trainer": settings.trainer.model_copy(update={"val_check_interval": counted})})
