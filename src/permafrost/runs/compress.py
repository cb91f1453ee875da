"""A finished run made smaller: what is cut out, learned again and quantized, and what that costs in quality."""

import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permafrost.errors import ConfigError
from permafrost.runs.assembly import console, prepare, seed_everything
from permafrost.runs.compressible import check, check_fits, check_sparsity
from permafrost.runs.finished import COMPRESSED, Finished, as_training, calibration
from permafrost.runs.reading import told_of_files
from permafrost.runs.recover import recover_, sparsity_asked, train_control
from permafrost.settings.preflight import monitor_mode
from permafrost.settings.schema import CompressionSection, Settings
from permafrost.storage.atomic import complete_or_absent, kept_json

if TYPE_CHECKING:
    from permafrost.compression.calibration import Worth
    from permafrost.deployment.scoring import Scored
    from permafrost.model.gpt2 import GPT2WithHead

SUMMARY = "compression.json"
NOISE_BATCHES = 4
RECIPE = {"task", "model", "head", "freezing", "optimizer", "scheduler", "loss", "augmentation", "cleaning"}
Entry = dict[str, Any]


def compress(run_dir: Path, settings: Settings) -> Entry:
    """Cut, learn again, quantize, measure; leaves `compressed/NAME/`, and its entry in result.json and report.html."""
    plan = settings.compression
    check(plan, settings)
    if (run_dir / COMPRESSED / plan.name / SUMMARY).exists():
        raise ConfigError(f"{run_dir / COMPRESSED / plan.name} is there already; give compression.name=ANOTHER")
    clear(run_dir, plan)
    seed_everything(settings.seed)
    run = Finished(run_dir=run_dir, settings=as_training(settings), prepared=prepare(settings))
    keep_thresholds_(run)
    console.print(f"[bold]compression={plan.name}[/] of {run_dir}")
    student = run.load()
    before = parameter_counts(student)
    changes = cut(student, run)
    check_fits(student, plan)
    entry: Entry = {"method": plan.name, **made_by(settings), "changes": changes, **parameter_counts(student)}
    if (plan.drop or plan.narrow) and entry["parameters"] >= before["parameters"]:
        raise ConfigError(f"compression={plan.name} took nothing out ({changes}); give a larger share")
    if plan.recover.epochs:
        recover_(student, run)
    if plan.sparsify:
        check_sparsity(plan.sparsify.sparsity, student)
    write(student, run)
    if plan.quantize:
        entry["sqnr_db"] = noise_of(student, run)
    if plan.recover.epochs and plan.recover.control:
        entry["control"] = value_of_control(run)
    entry |= compared(run)
    entry["before"] |= before
    keep_curve(run)
    (run.directory / SUMMARY).write_text(json.dumps(entry, indent=2) + "\n", "utf-8")
    record(run_dir, entry)
    tell(entry, run)
    return entry


def made_by(settings: Settings) -> Entry:
    """What a version depends on beyond its run."""
    from permafrost.data.tokens.tokenization import fingerprint

    plan = settings.compression.model_dump(exclude={"name", "threads"})
    recipe = settings.model_dump(include=RECIPE)
    return {"seed": settings.seed, "plan": plan, "recipe": fingerprint(recipe)}


def keep_thresholds_(run: Finished) -> None:
    """Those of labels were chosen on validation, as the run was trained."""
    from permafrost.deployment.predictor import task_of_run
    from permafrost.tasks.multi_label import MultiLabel

    of_run = task_of_run(run.run_dir)
    if isinstance(run.prepared.task, MultiLabel) and isinstance(of_run, MultiLabel):
        run.prepared.task.thresholds = of_run.thresholds


def clear(run_dir: Path, plan: CompressionSection) -> None:
    """What an earlier start has made or begun."""
    for name in (plan.name, f"{plan.name}-recovery", f"{plan.name}-control"):
        shutil.rmtree(run_dir / COMPRESSED / name, ignore_errors=True)


def cut(student: "GPT2WithHead", run: Finished) -> dict[str, Any]:
    """Take out what the plan says; gives what was taken out."""
    from permafrost.compression.cut import drop_blocks_, narrow_
    from permafrost.compression.sparsity import sparsify_

    plan, changes = run.plan, dict[str, Any]()
    if drop := plan.drop:
        changes["blocks kept"] = drop_blocks_(student, calibration(run), share=drop.share, choose=drop.choose)
    if narrow := plan.narrow:
        changes |= narrow_(student, worth_of(student, run), mlp=narrow.mlp, heads=narrow.heads)
    if plan.sparsify and not plan.is_gradual:
        sparsify_(student, calibration(run), sparsity_asked(plan))
    return changes


def worth_of(student: "GPT2WithHead", run: Finished) -> "list[Worth]":
    from permafrost.compression.calibration import worth_by_activation, worth_by_taylor
    from permafrost.safety.building import build

    assert run.plan.narrow is not None
    if run.plan.narrow.choose == "activation":
        return worth_by_activation(student, calibration(run))
    return worth_by_taylor(student, run.prepared.task, build(run.settings.loss), calibration(run))


def write(model: "GPT2WithHead", run: Finished) -> None:
    """Plain Transformers' layout, or in place of its weights those of fewer bits."""
    from permafrost.deployment.export import export_model
    from permafrost.deployment.quantized import quantize_

    with complete_or_absent(run.directory) as partial:
        files = told_of_files(run.settings.data)
        export_model(model.eval(), run.prepared.task, run.prepared.encoding, partial, card_of(run), files=files)
        if run.plan.quantize:
            quantize_(partial, model, run.plan.quantize.method)


def card_of(run: Finished) -> str:
    from permafrost.deployment.export import own_part

    plan = run.plan
    ours = own_part(run.settings.model.attention, run.prepared.task.describe())
    loading = (
        f"{ours}, which plain Transformers does not" if ours else "plain Transformers loads it, as it does the run's"
    )
    if plan.quantize and plan.quantize.method != "nf4":
        loading = f"it is a graph for {'ONNX Runtime' if plan.quantize.method == 'int8' else 'OpenVINO'}"
    elif plan.narrow and plan.narrow.heads:
        loading = "its attention has fewer heads than GPT2Config can say, which plain Transformers refuses"
    return (
        f"# compression={plan.name} of {run.run_dir.name}\n\n{loading[0].upper()}{loading[1:]}.\n\n"
        '```python\nfrom permafrost.deployment.predictor import Predictor\n\nPredictor("THIS_DIRECTORY")\n```\n'
    )


def noise_of(model: "GPT2WithHead", run: Finished) -> float:
    """Decibels between the logits before rounding and the noise of it, over a few batches of training rows."""
    from permafrost.compression.quantization import sqnr_db
    from permafrost.deployment.predictor import Predictor

    return sqnr_db(model.eval(), Predictor(run.directory).model, islice(calibration(run), NOISE_BATCHES))


def value_of_control(run: Finished) -> float:
    """The test score of the dense model after as many epochs more: what recovery has to be compared with; trained once
    for all versions that recover as long."""
    from permafrost.deployment.scoring import value_of

    recipe = run.settings.model_dump(exclude={"compression"})
    path = kept(run, "control", run.prepared.rows["train"].fingerprint, recipe)

    def measured() -> float:
        value = value_of(answers_of(train_control(run), run))
        shutil.move(run.beside("control") / "metrics.jsonl", path.with_suffix(".jsonl"))
        shutil.rmtree(run.beside("control"))
        return value

    value = kept_json(path, measured)
    shutil.copy(path.with_suffix(".jsonl"), run.directory / "control.jsonl")
    return value


def kept(run: Finished, what: str, *how: Any) -> Path:
    """Where a figure lies that all that is made of the run has in common."""
    from permafrost.data.tokens.tokenization import fingerprint
    from permafrost.storage.checksums import sums_of

    of_run = (run.prepared.rows["test"].fingerprint, sums_of(run.run_dir / "model"), run.settings.task.monitor)
    return run.run_dir / COMPRESSED / f"{what}-{fingerprint(*of_run, *how)}.json"


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

    threads, dense = run.plan.threads, run.run_dir / "model"
    known = kept(run, "dense", threads, platform.node())  # another machine takes other milliseconds
    before = kept_json(known, lambda: {**quality(dense, run), **cost_of(dense, threads)})
    after = {**quality(run.directory, run), **cost_of(run.directory, threads)}
    of_run = {"metric_name": run.settings.task.monitor, "mode": monitor_mode(run.settings)}
    return {**of_run, **after, "before": before}


def quality(directory: Path, run: Finished) -> Entry:
    from permafrost.deployment.scoring import interval_of, value_of

    answers = answers_of(directory, run)
    return {"metric": value_of(answers), "interval": list(interval_of(answers))}


def parameter_counts(model: "GPT2WithHead") -> dict[str, int]:
    """Of all, and of the blocks: an embedding is a third of GPT-2 small, and most ways leave it as it is."""
    parts = {"parameters": model, "block_parameters": model.transformer.h}
    return {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}


def keep_curve(run: Finished) -> None:
    """Of what was trained for it the logged steps stay, beside it."""
    if run.beside("recovery").is_dir():
        shutil.move(run.beside("recovery") / "metrics.jsonl", run.directory / "recovery.jsonl")
        shutil.rmtree(run.beside("recovery"))


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
    if run.plan.sparsify:
        console.print("  zeros are stored and multiplied as other numbers are: no smaller, and no faster")
    console.print(
        f"  test {name} {entry['metric']:.4f} ({low:.4f} to {high:.4f}), before {before['metric']:.4f}{control}\n"
        f"  {entry['size_mb']:.2f} MB, before {before['size_mb']:.2f}; a request {entry['latency_ms']:.2f} ms, before "
        f"{before['latency_ms']:.2f} ({entry['threads']} thread{'s' * (entry['threads'] > 1)})\n  {run.directory}"
    )


def compress_each(run_dir: Path, settings: Sequence[Settings]) -> list[Entry]:
    """One after the other; then which of them, and of what was made before, no other beats in size or in time."""
    from permafrost.reporting.outcome import measured_alike

    for each in settings:
        if is_made(run_dir, each):
            console.print(f"[bold]compression={each.compression.name}[/] of {run_dir} was made before")
        else:
            compress(run_dir, each)
    entries: list[Entry] = json.loads((run_dir / "result.json").read_text("utf-8"))["compression"]
    for alike in measured_alike(entries):
        milliseconds = f"ms, {alike[0]['threads']} thread{'s' * (alike[0]['threads'] > 1)}"
        console.print(f"[bold]{'':24}{alike[0]['metric_name']:>12}{'MB':>10}{milliseconds:>15}[/]  not beaten in")
        for entry, wins in zip(alike, not_beaten(alike), strict=True):
            figures = f"{entry['metric']:12.4f}{entry['size_mb']:10.2f}{entry['latency_ms']:15.2f}"
            console.print(f"{entry['method']:24}{figures}  {', '.join(wins)}")
    return entries


def is_made(run_dir: Path, settings: Settings) -> bool:
    """By the same plan, as of a sweep that broke off and is started again."""
    path = run_dir / COMPRESSED / settings.compression.name / SUMMARY
    return path.exists() and made_by(settings).items() <= json.loads(path.read_text("utf-8")).items()


def not_beaten(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Of each version in which of the two costs none is better for its quality."""
    from permafrost.compression.measure import frontier

    sign = 1 if entries[0]["mode"] == "max" else -1
    qualities = [sign * entry["metric"] for entry in entries]
    costs = {"size": "size_mb", "time": "latency_ms"}
    best = {name: frontier([entry[key] for entry in entries], qualities) for name, key in costs.items()}
    return [[name for name in costs if best[name][number]] for number in range(len(entries))]
