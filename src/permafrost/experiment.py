"""One run, from configuration to result."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from permafrost.assembly import (
    Prepared,
    console,
    is_first_process,
    make_models,
    open_stores,
    prepare,
    seed_everything,
)
from permafrost.atomic import complete_or_absent
from permafrost.claims import sole_run
from permafrost.compress import clear, compress
from permafrost.compressible import check as check_compression
from permafrost.config import Settings, read_settings
from permafrost.errors import TrainingError
from permafrost.fitting import fit, leave_group, make_modules, make_trainer, parts_that_fit, with_parts_counted
from permafrost.preflight import preflight
from permafrost.redaction import redacted
from permafrost.resuming import begin, notes_of
from permafrost.tasks.base import in_part
from permafrost.writers import check_writer

if TYPE_CHECKING:
    import lightning.pytorch as lightning

    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.training.module import FineTuning
    from permafrost.training.trunk_pass import Stores

Result = dict[str, Any]
YARDSTICK_ROWS = 100_000


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
        seed_everything(settings.seed)
        prepared = {name: prepare(part) for name, part in settings.by_part().items()}
    with sole_run(run_dir) if is_first_process() else nullcontext():
        try:
            return train_and_test(cfg, settings, prepared, run_dir, clock, sweep)
        except BaseException:  # a signal, too
            leave_group(only="gloo")
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
        stores = {
            name: open_stores(start.as_decided(part, name), prepared[name], models[name], in_sweep=sweep is not None)
            for name, part in settings.by_part().items()
        }
    with clock.stage("setup"):
        module, data = make_modules(settings, prepared, models, stores)
        if settings.data.auto_batch:
            data.parts_per_batch = start.notes.get("parts_per_batch") or parts_that_fit(settings, module, data)
            settings = with_parts_counted(settings, data.parts_per_batch)
        accumulate = data.accumulate(settings.trainer.max_epochs)
        plain_config: Any = redacted(OmegaConf.to_container(cfg, resolve=True))
        notes = notes_of(settings, prepared, stores) | {"parts_per_batch": data.parts_per_batch}
        trainer = make_trainer(
            settings, prepared, run_dir, plain_config, accumulate=accumulate, sweep=sweep, notes=notes
        )
    with clock.stage("fit"):
        fit(trainer, module, data, settings, start.checkpoint)
    with clock.stage("test"):
        scores = evaluate_best(module, data, trainer)
    tokens_computed = sum(of_part.tokens_computed for of_part in stores.values())
    result = describe(settings, module, trainer, scores, clock, tokens_computed)
    answers = answers_to_test_rows(trainer, prepared)  # of all processes, so that all must be here
    leave_group()
    if trainer.is_global_zero:
        say_what_was_read(data.tokens_read, tokens_computed)
        write_run(run_dir, settings, prepared, models, result, answers, stores)
        if settings.compression.is_asked:
            clear(run_dir, settings.compression)
            result["compression"] = [compress(run_dir, settings)]
        close_loggers(trainer, run_dir)
    return result


def write_card(run_dir: Path, prepared: Mapping[str, Prepared]) -> None:
    """data.json, the data card of each part; and the rows that were put aside, so that none is lost."""
    cards = {name: part.card for name, part in prepared.items()}
    (run_dir / "data.json").write_text(json.dumps(cards) + "\n", "utf-8")
    aside = [{"part": name, **row} if name else row for name, part in prepared.items() for row in part.quarantined]
    if aside:
        lines = "".join(json.dumps(row, default=str) + "\n" for row in aside)
        (run_dir / "quarantine.jsonl").write_text(lines, "utf-8")
        console.print(f"  {len(aside):,} rows put aside: {run_dir}/quarantine.jsonl")


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


def answers_to_test_rows(
    trainer: "lightning.Trainer", prepared: Mapping[str, Prepared]
) -> dict[str, list[dict[str, Any]]]:
    """Of each part, to each test row, in their order; none from a plain language model."""
    from permafrost.training.callbacks.collect import CollectOutputs
    from permafrost.training.callbacks.written_texts import WrittenTexts

    answers: dict[str, list[dict[str, Any]]] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WrittenTexts):
            answers[callback.part] = [{"text": text} for text in callback.written["test"]]
        if isinstance(callback, CollectOutputs) and (outputs := callback.in_order()):
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

    trained_tokens = trainer.strategy.reduce(module.trained_tokens, reduce_op="sum")
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
        "tokens": {"trained": int(trained_tokens), "trunk": tokens_computed},
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "allow_leaks": any(part.data.allow_leaks for part in settings.by_part().values()),
        **scores,
        "compression": [],
    }


def write_run(
    run_dir: Path,
    settings: Settings,
    prepared: Mapping[str, Prepared],
    models: Mapping[str, "GPT2WithHead"],
    result: Result,
    answers: Mapping[str, list[dict[str, Any]]],
    stores: Mapping[str, "Stores"],
) -> None:
    """The model directory, the test predictions, the yardsticks, result.json, and the report made of them.

    Of several parts each has a model directory of its own, model/PART, and is named in its predictions.
    """
    from permafrost.deployment.export import export_model, model_card
    from permafrost.reporting.html import write_report

    yardsticks: dict[str, float] = {}
    for name, of_part in settings.by_part().items():
        part = prepared[name]
        card = model_card(of_part.model_dump(), scores_of_part(result["test"], name), part.task.describe())
        export_model(models[name], part.task, part.encoding, run_dir / "model" / name, card, stores[name].trunk)
        measured = measure_yardsticks(of_part, part)
        yardsticks |= {in_part(name, key): value for key, value in measured.items()}
    write_predictions(run_dir / "predictions.jsonl", prepared, answers)
    if yardsticks:
        (run_dir / "yardsticks.json").write_text(json.dumps(yardsticks, indent=2) + "\n", "utf-8")
    (run_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    write_report(run_dir)
    console.print("  test: " + "  ".join(f"{name} {value:.4f}" for name, value in result["test"].items()))
    say_how_texts_were_scored(prepared, answers)
    if yardsticks:
        console.print("  " + "  ".join(f"{name} {value:.4f}" for name, value in yardsticks.items()))
    console.print(f"  {run_dir}/model loads with plain Transformers; {run_dir}/report.html shows the run")


def say_how_texts_were_scored(prepared: Mapping[str, Prepared], answers: Mapping[str, list[dict[str, Any]]]) -> None:
    """sacrebleu's own words for how it computed: figures can be compared with no others."""
    from permafrost.tasks.base import references_of
    from permafrost.tasks.text_scores import signatures

    for name, of_part in answers.items():
        if "bleu" in prepared[name].task.metrics_logged:
            references = [references_of(row) for row in prepared[name].rows["test"]]
            for metric, signature in signatures([answer["text"] for answer in of_part], references).items():
                console.print(f"  {in_part(name, metric)} by sacrebleu: {signature}", markup=False)


def scores_of_part(scores: Mapping[str, float], name: str) -> dict[str, float]:
    prefix = in_part(name, "")
    return {key.removeprefix(prefix): value for key, value in scores.items() if key.startswith(prefix)}


def write_predictions(
    path: Path, prepared: Mapping[str, Prepared], answers: Mapping[str, list[dict[str, Any]]]
) -> None:
    if not answers:
        return
    with path.open("w", encoding="utf-8") as file:
        for name, of_part in answers.items():
            named = {"part": name} if name else {}
            for row, answer in zip(prepared[name].rows["test"], of_part, strict=True):
                file.write(json.dumps({**named, **row, "prediction": answer}, ensure_ascii=False) + "\n")


def say_what_was_read(tokens_read: int, tokens_computed: int) -> None:
    if tokens_read:
        share = tokens_read / (tokens_read + tokens_computed)
        console.print(f"  store: {tokens_read:,} tokens read, {tokens_computed:,} computed; {share:.1%} was there")


def measure_yardsticks(settings: Settings, prepared: Prepared) -> dict[str, float]:
    """Test scores that need no GPT-2; kept with the cache, as every run on these rows has them."""
    from permafrost.data.tokenization import fingerprint
    from permafrost.tasks.yardsticks import of_next_tokens, yardsticks_of

    if not settings.yardsticks:
        return {}
    if prepared.rows["train"].num_rows > YARDSTICK_ROWS:
        console.print(f"  no yardsticks: TF-IDF of more than {YARDSTICK_ROWS:,} rows takes longer and more than GPT-2")
        return {}
    key = fingerprint(prepared.task.roles, [rows.fingerprint for rows in prepared.rows.values()])
    path = Path(settings.data.cache_dir) / "yardsticks" / f"{key}.json"
    if not path.exists():
        measured = yardsticks_of(prepared.task, prepared.rows)
        with complete_or_absent(path) as partial:
            partial.write_text(json.dumps(measured), "utf-8")
    measured = json.loads(path.read_text("utf-8"))
    if "perplexity" in prepared.task.metrics_logged:
        measured |= of_next_tokens(prepared.splits["train"], prepared.splits["test"])
    return measured


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
