"""A finished run made smaller: what is cut out, learned again and quantized, and what that costs in quality."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from permafrost.assembly import Prepared, console, make_modules, make_trainer, open_stores, prepare, seed_everything
from permafrost.atomic import complete_or_absent
from permafrost.config import CompressionSection, Settings
from permafrost.errors import ConfigError
from permafrost.preflight import check_buildable, monitor_mode

if TYPE_CHECKING:
    from permafrost.data.batching import Batch
    from permafrost.deployment.scoring import Scored
    from permafrost.model.activation_store import ActivationStore
    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.tasks.base import LossSum

COMPRESSED, SUMMARY = "compressed", "compression.json"
Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that is done: where it lies, its settings with what is to be done now, and its data."""

    run_dir: Path
    settings: Settings
    prepared: Prepared

    @property
    def plan(self) -> CompressionSection:
        return self.settings.compression

    @property
    def directory(self) -> Path:
        return self.run_dir / COMPRESSED / self.plan.name

    def beside(self, what: str) -> Path:
        """Where something is trained for it."""
        return self.directory.with_name(f"{self.plan.name}-{what}")

    def load(self, *, cut: int = 0) -> "GPT2WithHead":
        """Its model, all of it to be trained; or `cut` above so many blocks, whose output may be stored."""
        from permafrost.deployment.predictor import load_model
        from permafrost.preflight import window_length

        return load_model(
            self.run_dir / "model",
            self.prepared.task,
            {"depth": cut} if cut else None,
            bidirectional=self.settings.model.attention == "bidirectional",
            window=window_length(self.settings),
        ).train()


def compress(run_dir: Path, settings: Settings) -> Entry:
    """Cut, learn again, quantize, measure; leaves `compressed/NAME/`, and its entry in result.json and report.html."""
    plan = settings.compression
    check(plan, settings, run_dir)
    seed_everything(settings.seed)
    run = Finished(run_dir=run_dir, settings=as_training(settings), prepared=prepare(settings))
    console.print(f"[bold]compression={plan.name}[/] of {run_dir}")
    student = run.load()
    before = size_of(student)
    changes = cut(student, run)
    entry: Entry = {"method": plan.name, "changes": changes, "parameters": size_of(student)}
    if plan.recover.epochs:
        teacher = teacher_of(run) if plan.recover.alpha else None
        learn(student, run, "recovery", teacher=teacher, is_sparse=plan.sparsify is not None)
    check_changed(plan, before, student, changes)
    write(student, run)
    if plan.recover.epochs and plan.recover.control:
        entry["control"] = control_of(run)
    entry |= compared(run)
    keep_curves(run)
    (run.directory / SUMMARY).write_text(json.dumps(entry, indent=2) + "\n", "utf-8")
    record(run_dir, entry)
    tell(entry, run)
    return entry


def check(plan: CompressionSection, settings: Settings, run_dir: Path) -> None:
    """What can be found wrong before anything is read."""
    if plan.sparsify and plan.sparsify.method == "movement" and not plan.is_gradual:
        raise ConfigError(
            "compression.sparsify.method=movement goes by how weights move; give compression.sparsify.schedule=cubic"
        )
    if plan.is_gradual and not plan.recover.epochs:
        raise ConfigError(
            "compression.sparsify.schedule=cubic chooses while it trains; give compression.recover.epochs=2"
        )
    if settings.parts:
        raise ConfigError("a run of task=multi is compressed part by part: give each task a run of its own")
    if not (plan.drop or plan.narrow or plan.sparsify or plan.quantize):
        raise ConfigError(f"compression={plan.name} changes nothing; give one of the options of conf/compression")
    if settings.resume == "never" and (run_dir / COMPRESSED / plan.name).exists():
        raise ConfigError(f"{run_dir / COMPRESSED / plan.name} is there already; give compression.name=ANOTHER")
    check_buildable(settings)


def clear(run_dir: Path, plan: CompressionSection) -> None:
    """What an earlier start of the run has made or begun."""
    for name in (plan.name, f"{plan.name}-recovery", f"{plan.name}-control"):
        shutil.rmtree(run_dir / COMPRESSED / name, ignore_errors=True)


def as_training(settings: Settings) -> Settings:
    """The run's own recipe, over all of the model and for the epochs of recovery."""
    freezing = settings.freezing.model_copy(update={"blocks": 0, "embeddings": False, "final_norm": False})
    trainer = settings.trainer.model_copy(
        update={"max_epochs": max(1, settings.compression.recover.epochs), "max_steps": -1}
    )
    return settings.model_copy(update={"freezing": freezing, "trainer": trainer, "logger": {}, "resume": "never"})


def cut(student: "GPT2WithHead", run: Finished) -> dict[str, Any]:
    """Take out what the plan says; gives what was taken out."""
    plan, changes = run.plan, dict[str, Any]()
    if plan.drop:
        changes["blocks kept"] = drop_blocks_(student, run)
    if plan.narrow:
        changes |= narrow_(student, run)
    if plan.sparsify and not plan.is_gradual:
        sparsify_(student, run)
    return changes


def drop_blocks_(student: "GPT2WithHead", run: Finished) -> list[int]:
    from permafrost.compression.calibration import seen_by_blocks
    from permafrost.compression.distillation import evenly_spaced
    from permafrost.model.surgery import keep_blocks_

    plan, blocks = run.plan.drop, len(student.transformer.h)
    assert plan is not None
    count = blocks - round(plan.share * blocks)
    if not 1 <= count < blocks:
        raise ConfigError(f"compression.drop.share={plan.share}: of {blocks} blocks {count} would be left")
    if plan.choose == "evenly":
        kept = evenly_spaced(blocks, count)
    else:
        influence = [seen.influence for seen in seen_by_blocks(student, calibration(run))]
        kept = sorted(np.argsort(influence)[blocks - count :].tolist())
    keep_blocks_(student.transformer, kept)
    return kept


def narrow_(student: "GPT2WithHead", run: Finished) -> dict[str, Any]:
    from permafrost.building import build
    from permafrost.compression import calibration as by
    from permafrost.model.surgery import keep_heads_, keep_neurons_

    plan, blocks, changes = run.plan.narrow, student.transformer.h, dict[str, Any]()
    assert plan is not None
    if plan.choose == "taylor":
        worth = by.worth_by_taylor(student, run.prepared.task, build(run.settings.loss), calibration(run))
        neurons, heads = [of.neurons for of in worth], [of.heads for of in worth]
    else:
        seen = by.seen_by_blocks(student, calibration(run))
        neurons = [by.neurons_by_activation(block, of) for block, of in zip(blocks, seen, strict=True)]
        heads = [by.heads_by_activation(block, of) for block, of in zip(blocks, seen, strict=True)]
    if plan.mlp:
        keep_neurons_(student.transformer, kept := [most_worth(scores, plan.mlp) for scores in neurons])
        changes["neurons kept"] = len(kept[0])
    if plan.heads:
        keep_heads_(student.transformer, kept := [most_worth(scores, plan.heads) for scores in heads])
        changes["heads kept"] = len(kept[0])
    return changes


def most_worth(scores: Any, dropped: float) -> Any:
    """Positions of all but the `dropped` share, rising; one at least."""
    count = max(1, len(scores) - round(dropped * len(scores)))
    return scores.argsort(descending=True)[:count].sort().values


def calibration(run: Finished) -> Iterator["Batch"]:
    """The first batches of an epoch over the training rows."""
    from permafrost.data.batching import TokenBatching, padded_batch, shuffled_batches

    split, options = run.prepared.splits["train"], run.settings
    batching = TokenBatching(max_tokens=options.data.max_tokens_per_batch)
    planned = shuffled_batches(split.lengths, batching, seed=options.seed, epoch=0)
    return (padded_batch(split, rows) for rows in islice(planned, run.plan.calibration_batches))


def teacher_of(run: Finished) -> "LossSum":
    """The loss that is learned with the run's model as it was, or another run's, as teacher."""
    from permafrost.compression.distillation import Lesson, check_same_tokens, taught
    from permafrost.deployment.predictor import Predictor

    plan = run.plan.recover
    lesson = Lesson(alpha=plan.alpha, temperature=plan.temperature)
    if plan.teacher is None:
        return taught(run.prepared.task, run.load(cut=teacher_depth(run)), lesson)
    other = Predictor(plan.teacher)
    check_same_tokens(run.prepared.encoding.tokenizer, other.encoding.tokenizer)
    return taught(run.prepared.task, other.model, lesson)


def teacher_depth(run: Finished) -> int:
    """All blocks, so that a teacher is run once; none where they look ahead, as no frozen part does."""
    from permafrost.preflight import architecture

    return 0 if run.settings.model.attention == "bidirectional" else architecture(run.settings).n_layer


def stored_teacher(run: Finished) -> "ActivationStore | None":
    """What the teacher makes of the training rows: computed once, as the frozen part of a run is."""
    depth = teacher_depth(run)
    if not depth or run.plan.recover.teacher is not None:
        return None
    stores = open_stores(run.settings, run.prepared, run.load(cut=depth), in_sweep=False)
    return stores.by_split.get("train")


def learn(
    model: "GPT2WithHead", run: Finished, what: str, *, teacher: "LossSum | None" = None, is_sparse: bool = False
) -> None:
    """Train on the run's data by its own recipe, and keep the best weights; `what` names the directory."""
    from permafrost.experiment import evaluate_best
    from permafrost.fitting import fit

    console.print(f"  {what}: {run.plan.recover.epochs} epochs{' with a teacher' if teacher else ''}")
    model.train()
    run.beside(what).mkdir(parents=True, exist_ok=True)
    settings, prepared = run.settings, {"": run.prepared}
    of_teacher = stored_teacher(run) if teacher else None
    module, data = make_modules(settings, prepared, {"": model}, {}, taught=teacher, of_teacher=of_teacher)
    accumulate = data.accumulate(settings.trainer.max_epochs)
    sparse = [keep_sparse(model, run, data.total_steps(settings.trainer.max_epochs))] if is_sparse else []
    trainer = make_trainer(
        last_not_best(settings) if is_sparse and run.plan.is_gradual else settings,
        prepared,
        run.beside(what),
        {},
        accumulate=accumulate,
        sweep=None,
        more_callbacks=sparse,
    )
    fit(trainer, module, data, settings)
    evaluate_best(module, data, trainer)


def last_not_best(settings: Settings) -> Settings:
    """Without what goes by the best validation: an earlier one had more weights."""
    return settings.model_copy(update={"callbacks": settings.callbacks | {"best": None, "early_stopping": None}})


def sparsify_(model: "GPT2WithHead", run: Finished) -> None:
    """In one shot, by what the weights are now and what they see."""
    from permafrost.compression import sparsity

    parameters = sparsity.matrices(model.transformer)
    sparsity.apply_masks_(parameters, masks_of(parameters, scores_of(model, run), run, 1.0))


def scores_of(model: "GPT2WithHead", run: Finished) -> dict[str, Any]:
    from permafrost.compression import sparsity
    from permafrost.compression.calibration import seen_by_blocks

    if run.plan.sparsify and run.plan.sparsify.method == "wanda":
        return sparsity.wanda_scores(model.transformer, seen_by_blocks(model, calibration(run)))
    return {name: sparsity.magnitudes(weight) for name, weight in sparsity.matrices(model.transformer).items()}


def masks_of(
    parameters: Mapping[str, Any], scores: Mapping[str, Any], run: Finished, progress: float
) -> dict[str, Any]:
    from permafrost.compression import sparsity

    plan = run.plan.sparsify
    assert plan is not None
    share = sparsity.cubic(progress, plan.sparsity) if plan.schedule == "cubic" else plan.sparsity
    by_output = plan.method == "wanda"
    return {name: sparsity.mask_of(scores[name], share, plan.structure, by_output=by_output) for name in parameters}


def keep_sparse(model: "GPT2WithHead", run: Finished, total_steps: int) -> Any:
    """Masks that grow while the model learns, or stay as they are: by weights as they become, or by their movement."""
    from permafrost.compression import sparsity
    from permafrost.training.callbacks.keep_sparse import KeepSparse

    plan, parameters = run.plan.sparsify, sparsity.matrices(model.transformer)
    assert plan is not None
    if plan.method == "movement":
        moved = sparsity.Movement(parameters)
        return KeepSparse(
            parameters,
            lambda progress: masks_of(parameters, moved.scores, run, progress),
            total_steps=total_steps,
            observe=moved.observe,
        )
    if plan.schedule == "one_shot":
        zeros = {name: weight != 0 for name, weight in parameters.items()}
        return KeepSparse(parameters, lambda progress: zeros, total_steps=total_steps)
    return KeepSparse(
        parameters, lambda progress: masks_of(parameters, scores_of(model, run), run, progress), total_steps=total_steps
    )


def write(model: "GPT2WithHead", run: Finished) -> None:
    """Plain Transformers' layout, or an ONNX graph in integers beside what reads it."""
    from permafrost.deployment.export import export_model

    with complete_or_absent(run.directory) as partial:
        export_model(model.eval(), run.prepared.task, run.prepared.encoding, partial, card_of(run))
        if run.plan.quantize:
            quantize(model, partial)


def card_of(run: Finished) -> str:
    plan = run.plan
    loading = "plain Transformers loads it, as the model of the run"
    if plan.quantize:
        loading = "model.onnx is for ONNX Runtime"
    elif plan.narrow and plan.narrow.heads:
        loading = "its attention has fewer heads than GPT2Config can say, which plain Transformers refuses"
    return (
        f"# compression={plan.name} of {run.run_dir.name}\n\n{loading[0].upper()}{loading[1:]}.\n\n"
        '```python\nfrom permafrost.deployment.predictor import Predictor\n\nPredictor("THIS_DIRECTORY")\n```\n'
    )


def quantize(model: "GPT2WithHead", directory: Path) -> None:
    from permafrost.compression.quantization import quantize_int8
    from permafrost.deployment.onnx_graph import MODEL, export_onnx, quiet

    exact = directory / "exact.onnx"
    export_onnx(model, exact)
    with quiet():
        quantize_int8(exact, directory / MODEL)
    for path in (exact, directory / "model.safetensors"):
        path.unlink()


def control_of(run: Finished) -> float:
    """The test score of the dense model after as many epochs more: what recovery has to be compared with."""
    from permafrost.deployment.export import export_model
    from permafrost.deployment.scoring import value_of

    model = run.load()
    learn(model, run, "control")
    directory = run.beside("control") / "model"
    export_model(model.eval(), run.prepared.task, run.prepared.encoding, directory, "# the dense control\n")
    return value_of(answers_of(directory, run))


def answers_of(directory: Path, run: Finished) -> "Scored":
    """To the test rows."""
    import pyarrow as pa

    from permafrost.deployment.predictor import Predictor
    from permafrost.deployment.scoring import scored

    table = pa.concat_tables(run.prepared.rows["test"].slices())
    return scored(Predictor(directory), table, run.settings.task.monitor)


def compared(run: Finished) -> Entry:
    """Score and cost, before and after."""
    from permafrost.deployment.cost import cost_of

    metric, threads = run.settings.task.monitor, run.plan.threads
    known = run.run_dir / COMPRESSED / f"dense-{metric.replace('/', '-')}-{threads}.json"
    if not known.exists():  # measured once for all that is made of the run
        dense = {**quality(run.run_dir / "model", run), **cost_of(run.run_dir / "model", threads)}
        with complete_or_absent(known) as partial:
            partial.write_text(json.dumps(dense), "utf-8")
    after = {**quality(run.directory, run), **cost_of(run.directory, threads)}
    of_run = {"metric_name": metric, "mode": monitor_mode(run.settings)}
    return {**of_run, **after, "before": json.loads(known.read_text("utf-8"))}


def quality(directory: Path, run: Finished) -> Entry:
    from permafrost.deployment.scoring import interval_of, value_of

    answers = answers_of(directory, run)
    return {"metric": value_of(answers), "interval": list(interval_of(answers))}


def size_of(model: "GPT2WithHead") -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def check_changed(plan: CompressionSection, before: int, model: "GPT2WithHead", changes: Mapping[str, Any]) -> None:
    """Raises ConfigError where nothing is smaller, or not as sparse as was asked."""
    from permafrost.compression.sparsity import matrices, sparsity_of

    if (plan.drop or plan.narrow) and size_of(model) >= before:
        raise ConfigError(f"compression={plan.name} took nothing out ({changes}); give a larger share")
    if plan.sparsify:
        asked, reached = plan.sparsify.sparsity, sparsity_of(matrices(model.transformer))
        if reached < asked - 0.01:
            raise ConfigError(
                f"compression={plan.name}: {reached:.1%} of the weights are zero, and {asked:.1%} were asked"
            )


def keep_curves(run: Finished) -> None:
    """Of what was trained for it the logged steps stay, beside it."""
    for what in ("recovery", "control"):
        if run.beside(what).is_dir():
            shutil.move(run.beside(what) / "metrics.jsonl", run.directory / f"{what}.jsonl")
            shutil.rmtree(run.beside(what))


def record(run_dir: Path, entry: Entry) -> None:
    from permafrost.reporting.html import write_report

    path = run_dir / "result.json"
    result = json.loads(path.read_text("utf-8"))
    result["compression"] = [each for each in result["compression"] if each["method"] != entry["method"]] + [entry]
    with complete_or_absent(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    write_report(run_dir)


def tell(entry: Entry, run: Finished) -> None:
    before, name = entry["before"], entry["metric_name"]
    control = f", dense control {entry['control']:.4f}" if "control" in entry else ""
    low, high = entry["interval"]
    console.print(
        f"  test {name} {entry['metric']:.4f} ({low:.4f} to {high:.4f}), before {before['metric']:.4f}{control}\n"
        f"  {entry['size_mb']:.2f} MB, before {before['size_mb']:.2f}; a request {entry['latency_ms']:.2f} ms, before "
        f"{before['latency_ms']:.2f} ({entry['threads']} thread{'s' * (entry['threads'] > 1)})\n  {run.directory}"
    )


def compress_each(run_dir: Path, settings: Sequence[Settings]) -> list[Entry]:
    """One after the other; then which of them, and of what was made before, no other beats in size or in time."""
    for each in settings:
        compress(run_dir, each)
    entries = json.loads((run_dir / "result.json").read_text("utf-8"))["compression"]
    console.print(f"[bold]{'':24}{entries[0]['metric_name']:>12}{'MB':>10}{'ms':>10}[/]  not beaten in")
    for entry, wins in zip(entries, not_beaten(entries), strict=True):
        figures = f"{entry['metric']:12.4f}{entry['size_mb']:10.2f}{entry['latency_ms']:10.2f}"
        console.print(f"{entry['method']:24}{figures}  {', '.join(wins)}")
    return entries


def not_beaten(entries: Sequence[Entry]) -> list[list[str]]:
    """Of each version in which of the two costs none is better for its quality."""
    from permafrost.compression.measure import frontier

    sign = 1 if entries[0]["mode"] == "max" else -1
    qualities = [sign * entry["metric"] for entry in entries]
    costs = {"size": "size_mb", "time": "latency_ms"}
    best = {name: frontier([entry[key] for entry in entries], qualities) for name, key in costs.items()}
    return [[name for name in costs if best[name][number]] for number in range(len(entries))]
