"""What a run leaves in its directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from permafrost.runs.assembly import Prepared, console
from permafrost.runs.reading import told_of_files
from permafrost.settings.schema import Settings
from permafrost.storage.atomic import complete_or_absent
from permafrost.tasks.base import in_part

if TYPE_CHECKING:
    from permafrost.model.gpt2 import GPT2WithHead
    from permafrost.training.trunk_pass import Stores

YARDSTICK_ROWS = 100_000
YARDSTICKS_VERSION = 2  # raise it when they measure something else


def write_card(run_dir: Path, prepared: Mapping[str, Prepared]) -> None:
    """data.json, the data card of each part; and the rows that were put aside, so that none is lost."""
    cards = {name: part.card for name, part in prepared.items()}
    (run_dir / "data.json").write_text(json.dumps(cards) + "\n", "utf-8")
    aside = [{"part": name, **row} if name else row for name, part in prepared.items() for row in part.quarantined]
    if aside:
        lines = "".join(json.dumps(row, default=str) + "\n" for row in aside)
        (run_dir / "quarantine.jsonl").write_text(lines, "utf-8")
        console.print(f"  {len(aside):,} rows put aside: {run_dir}/quarantine.jsonl")


def write_run(
    run_dir: Path,
    settings: Settings,
    prepared: Mapping[str, Prepared],
    models: Mapping[str, "GPT2WithHead"],
    result: Mapping[str, Any],
    answers: Mapping[str, list[dict[str, Any]]],
    stores: Mapping[str, "Stores"],
) -> None:
    """The model directory, the test predictions, the yardsticks, result.json, and the report made of them.

    Of several parts each has a model directory of its own, model/PART, and is named in its predictions.
    """
    from permafrost.deployment.export import export_model, model_card
    from permafrost.reporting.html import write_report

    for name, of_part in settings.by_part().items():
        part = prepared[name]
        card = model_card(of_part.model_dump(), scores_of_part(result["test"], name), part.task.describe())
        directory, files = run_dir / "model" / name, told_of_files(of_part.data)
        export_model(models[name], part.task, part.encoding, directory, card, stores[name].trunk, files)
    write_predictions(run_dir / "predictions.jsonl", prepared, answers)
    (run_dir / "result.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    yardsticks = write_yardsticks(run_dir / "yardsticks.json", settings, prepared)
    write_report(run_dir)
    console.print("  test: " + "  ".join(f"{name} {value:.4f}" for name, value in result["test"].items()))
    say_how_texts_were_scored(prepared, answers)
    if yardsticks:
        console.print("  " + "  ".join(f"{name} {value:.4f}" for name, value in yardsticks.items()))
    console.print(f"  {run_dir}/model {how_it_loads(settings, prepared)}; {run_dir}/report.html shows the run")


def how_it_loads(settings: Settings, prepared: Mapping[str, Prepared]) -> str:
    from permafrost.deployment.export import own_part

    owns = [own_part(settings.model.attention, part.task.describe()) for part in prepared.values()]
    if any(owns):
        return "is for permafrost predict, serve and export (its README.md says why)"
    return "loads with plain Transformers" if not settings.parts else "has a model of each part for plain Transformers"


def say_how_texts_were_scored(prepared: Mapping[str, Prepared], answers: Mapping[str, list[dict[str, Any]]]) -> None:
    """sacrebleu's own words for how it computed: figures can be compared with no others."""
    from permafrost.tasks.base import WritesAnswers, references_of
    from permafrost.tasks.text_scores import signatures

    for name, of_part in answers.items():
        task = prepared[name].task
        if isinstance(task, WritesAnswers):
            references = [references_of(task.asked(row)) for row in prepared[name].rows["test"]]
            for metric, signature in signatures([answer["text"] for answer in of_part], references).items():
                console.print(f"  {in_part(name, metric)} by sacrebleu: {signature}", markup=False)


def scores_of_part(scores: Mapping[str, float], name: str) -> dict[str, float]:
    prefix = in_part(name, "")
    return {key.removeprefix(prefix): value for key, value in scores.items() if key.startswith(prefix)}


def write_predictions(
    path: Path, prepared: Mapping[str, Prepared], answers: Mapping[str, list[dict[str, Any]]]
) -> None:
    from permafrost.tasks.base import Writes

    if not answers:
        return
    with path.open("w", encoding="utf-8") as file:
        for name, of_part in answers.items():
            named, task = {"part": name} if name else {}, prepared[name].task
            for row, answer in zip(prepared[name].rows["test"], of_part, strict=True):
                asked = task.asked(row) if isinstance(task, Writes) else row
                file.write(json.dumps({**named, **asked, "prediction": answer}, ensure_ascii=False) + "\n")


def write_yardsticks(path: Path, settings: Settings, prepared: Mapping[str, Prepared]) -> dict[str, float]:
    """After the result, which does not hang on them."""
    measured = {
        in_part(name, key): value
        for name, of_part in settings.by_part().items()
        for key, value in measure_yardsticks(of_part, prepared[name]).items()
    }
    if measured:
        path.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    return measured


def measure_yardsticks(settings: Settings, prepared: Prepared) -> dict[str, float]:
    """Test scores that need no GPT-2; kept with the cache, as every run on these rows has them."""
    from permafrost.data.tokens.tokenization import fingerprint
    from permafrost.tasks.yardsticks import of_next_tokens, yardsticks_of

    if not settings.yardsticks:
        return {}
    if prepared.rows["train"].num_rows > YARDSTICK_ROWS:
        console.print(f"  no yardsticks: TF-IDF of more than {YARDSTICK_ROWS:,} rows takes longer and more than GPT-2")
        return {}
    replies = getattr(prepared.task, "replies", None)
    key = fingerprint(
        YARDSTICKS_VERSION, prepared.task.roles, replies, [rows.fingerprint for rows in prepared.rows.values()]
    )
    path = Path(settings.data.cache_dir) / "yardsticks" / f"{key}.json"
    if not path.exists():
        measured = yardsticks_of(prepared.task, prepared.rows)
        with complete_or_absent(path) as partial:
            partial.write_text(json.dumps(measured), "utf-8")
    measured = json.loads(path.read_text("utf-8"))
    if "perplexity" in prepared.task.metrics_logged:
        measured |= of_next_tokens(prepared.splits["train"], prepared.splits["test"])
    return measured
