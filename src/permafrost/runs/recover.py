"""What is left of a model learns again: from its data by the run's own recipe, and from a teacher."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from permafrost.errors import ConfigError
from permafrost.runs.assembly import console, open_stores
from permafrost.runs.finished import Finished, calibration
from permafrost.runs.fitting import evaluate_best, fit, make_modules, make_trainer
from permafrost.settings.schema import CompressionSection, Settings
from permafrost.storage.atomic import kept_json

if TYPE_CHECKING:
    from permafrost.compression.distillation import Lesson
    from permafrost.compression.sparsity import Sparsity
    from permafrost.model.activation_store import ActivationStore
    from permafrost.model.gpt2 import GPT2WithHead


def teacher_of(run: Finished) -> "GPT2WithHead":
    """The run's model as it was, or another run's. It is cut above all blocks, so that what they make of a row can be
    stored; or below them where they look ahead, as no frozen part does."""
    from permafrost.compression.distillation import check_same_answers, check_same_tokens
    from permafrost.deployment.predictor import Predictor
    from permafrost.model.freezing import Freezing
    from permafrost.model.gpt2 import GPT2WithHead

    if run.plan.recover.teacher is None:
        teacher = run.load()
    else:
        other = Predictor(run.plan.recover.teacher)
        if not isinstance(other.model, GPT2WithHead):
            raise ConfigError(
                f"compression.recover.teacher={run.plan.recover.teacher}: its weights are quantized; give the run that "
                "it was made of"
            )
        check_same_tokens(run.prepared.encoding.tokenizer, other.encoding.tokenizer)
        check_same_answers(run.prepared.task, other.task)
        teacher = other.model
    depth = 0 if teacher.bidirectional else len(teacher.transformer.h)
    teacher.freezing = Freezing(embeddings=depth > 0, blocks=depth)
    return teacher.eval()


def stored_teacher(run: Finished, teacher: "GPT2WithHead") -> "ActivationStore | None":
    """What the teacher makes of the training rows: computed once, as the frozen part of a run is."""
    if not teacher.freezing.blocks:
        return None
    only_train = replace(run.prepared, splits={"train": run.prepared.splits["train"]})
    modes = {"": run.settings.store.mode}
    stores = open_stores(run.settings, modes, {"": only_train}, {"": teacher}, in_sweep=False)
    return stores[""].by_split.get("train")


def recover_(student: "GPT2WithHead", run: Finished) -> None:
    """By the run's recipe, with the teacher and under the constraints that the plan names."""
    plan = run.plan
    run = as_teacher_writes(run) if plan.recover.answers == "teacher" else run
    teacher = teacher_of(run) if plan.recover.alpha or plan.recover.hidden else None
    with rounded(student, plan):
        learn(student, run, "recovery", teacher=teacher, is_sparse=plan.sparsify is not None)


def rounded(student: "GPT2WithHead", plan: CompressionSection) -> AbstractContextManager[None]:
    """Weights of 4 bits while it learns, where the plan says so."""
    from permafrost.compression.rounding import rounded_weights
    from permafrost.deployment.quantized import group_of

    if not (plan.quantize and plan.quantize.aware):
        return nullcontext()
    return rounded_weights(student.transformer, group_of(student))


def train_control(run: Finished) -> Path:
    """The dense model after as many epochs more; where it lies."""
    from permafrost.deployment.export import export_model

    model = run.load()
    learn(model, run, "control")
    directory = run.beside("control") / "model"
    export_model(model.eval(), run.prepared.task, run.prepared.encoding, directory, "# the dense control\n")
    return directory


def as_teacher_writes(run: Finished) -> Finished:
    """The training rows with the teacher's texts in place of their own (Kim and Rush 2016, arXiv:1606.07947, section
    3.2): what the student is to say, it can learn to say."""
    from permafrost.tasks.base import WritesAnswers
    from permafrost.tasks.preparation import encode_table

    task, rows = run.prepared.task, pa.concat_tables(run.prepared.rows["train"].slices())
    if not isinstance(task, WritesAnswers):
        raise ConfigError(f"task={task.name} writes no texts: compression.recover.answers=data")
    taught = task.with_answers(rows, written_by_teacher(run, rows))
    train = encode_table(task, taught, run.prepared.encoding)
    return replace(run, prepared=replace(run.prepared, splits=run.prepared.splits | {"train": train}))


def written_by_teacher(run: Finished, rows: pa.Table) -> list[str]:
    """To every training row; once, as long as teacher, rows and decoding are the same."""
    from permafrost.data.tokens.tokenization import fingerprint
    from permafrost.deployment.predictor import Predictor, model_directory
    from permafrost.storage.checksums import sums_of

    directory = model_directory(Path(run.plan.recover.teacher or run.run_dir))
    how = (run.prepared.rows["train"].fingerprint, run.prepared.task.describe(), sums_of(directory))
    path = Path(run.settings.data.cache_dir) / "written" / f"{fingerprint(*how)}.json"

    def written() -> list[str]:
        console.print(f"  the teacher writes {rows.num_rows:,} answers")
        return [answer["text"] for answer in Predictor(directory).answer(rows.to_pylist())]

    return kept_json(path, written)


def learn(
    model: "GPT2WithHead", run: Finished, what: str, *, teacher: "GPT2WithHead | None" = None, is_sparse: bool = False
) -> None:
    """Train on the run's data by its own recipe, and keep the best weights; `what` names the directory."""
    from permafrost.compression.distillation import taught
    from permafrost.compression.gradual import keep_sparse

    console.print(f"  {what}: {run.plan.recover.epochs} epochs{' with a teacher' if teacher else ''}")
    model.train()
    run.beside(what).mkdir(parents=True, exist_ok=True)
    settings, prepared = run.settings, {"": run.prepared}
    of_teacher = stored_teacher(run, teacher) if teacher else None
    loss = taught(run.prepared.task, teacher, lesson_of(run.plan)) if teacher else None
    module, data = make_modules(settings, prepared, {"": model}, {}, taught=loss, of_teacher=of_teacher)
    accumulate = data.accumulate(settings.trainer.max_epochs)
    steps = data.total_steps(settings.trainer.max_epochs)
    sparse = (
        [keep_sparse(model, lambda: calibration(run), sparsity_asked(run.plan), total_steps=steps)] if is_sparse else []
    )
    trainer = make_trainer(
        for_sparse(settings, run.plan) if is_sparse else settings,
        prepared,
        run.beside(what),
        {},
        accumulate=accumulate,
        sweep=None,
        more_callbacks=sparse,
    )
    fit(trainer, module, data, settings)
    evaluate_best(module, data, trainer)


def lesson_of(plan: CompressionSection) -> "Lesson":
    from permafrost.compression.distillation import Lesson

    return Lesson(alpha=plan.recover.alpha, temperature=plan.recover.temperature, hidden=plan.recover.hidden)


def sparsity_asked(plan: CompressionSection) -> "Sparsity":
    from permafrost.compression.sparsity import Sparsity

    assert plan.sparsify is not None
    return Sparsity(**plan.sparsify.model_dump())


def for_sparse(settings: Settings, plan: CompressionSection) -> Settings:
    """Without an average, of which no weight is zero; and where weights go while it trains, without what goes by the
    best validation, as an earlier one had more of them."""
    without = ("average", "best", "early_stopping") if plan.is_gradual else ("average",)
    return settings.model_copy(update={"callbacks": settings.callbacks | dict.fromkeys(without)})
