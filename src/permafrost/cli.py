"""The `permafrost` command: what is done with data before a run, and with a run when it is finished."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from permafrost import command_files
from permafrost.command_files import tell
from permafrost.errors import ConfigError, DataError, PermafrostError, ResourceError
from permafrost.safety.redaction import redacted_text

app = typer.Typer(
    name="permafrost", help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
store_app = typer.Typer(help="What is kept of the frozen part's output.", no_args_is_help=True)
app.add_typer(store_app, name="store")
DEFAULT_STORE = Path("outputs/activations")
DEFAULT_PROBLEMS = Path("outputs/data_problems.jsonl")
StoreDirectory = Annotated[Path, typer.Option("--dir", help="the store.dir of the runs")]
Run = Annotated[Path, typer.Argument(help="a run directory, or a model/ directory of one")]
TextColumn = Annotated[list[str] | None, typer.Option("--text", help="column of the text; give it twice for a pair")]
Format = Annotated[
    str | None, typer.Option("--format", help="csv, jsonl, conll, ...; as the run's own files unless given")
]


@app.callback()
def permafrost() -> None:
    """Data before a run, and a run when it is finished. Training is `python train.py`."""


@app.command()
def predict(
    run: Run,
    text: Annotated[str | None, typer.Argument(help="the text to answer")] = None,
    pair: Annotated[str | None, typer.Option(help="the second text of a pair")] = None,
    input: Annotated[Path | None, typer.Option(help="a file of rows to answer")] = None,
    output: Annotated[
        Path | None, typer.Option(help="where to write the rows with their answers: .jsonl or .csv")
    ] = None,
    text_column: TextColumn = None,
    file_format: Format = None,
) -> None:
    """Answer one text, or every row of a file."""
    from permafrost.deployment.predictor import Predictor

    command_files.check_asked(text, input, output)
    predictor = Predictor(run, say=tell)
    if text is not None:
        print(json.dumps(predictor.predict([text], None if pair is None else [pair])[0], ensure_ascii=False))
        return
    assert input is not None
    roles, own = predictor.task.roles, predictor.files
    table = command_files.read_table(input, roles, text_column, own=own, file_format=file_format, only_asked=True)
    answers = predictor.answer(command_files.rows_to_answer(predictor.task, table))
    rows = [command_files.with_answer(*both) for both in zip(table.to_pylist(), answers, strict=True)]
    command_files.write_answers(rows, output)


@app.command()
def evaluate(
    run: Run,
    data: Annotated[
        list[Path], typer.Option(help="a file of labelled rows; of parallel text give it twice, SOURCE and TARGET")
    ],
    text_column: TextColumn = None,
    label_column: Annotated[str | None, typer.Option("--label", help="column of the label or target")] = None,
    file_format: Format = None,
) -> None:
    """Print the task's metrics over a file, as JSON."""
    from permafrost.deployment.predictor import Predictor

    predictor = Predictor(run, say=tell)
    roles, own = predictor.task.roles, predictor.files
    table = command_files.read_table(data, roles, text_column, label_column, own=own, file_format=file_format)
    command_files.check_labels(predictor.task, table)
    print(json.dumps(predictor.evaluate(table), indent=2))


@app.command()
def review(
    run: Run,
    document: Annotated[Path, typer.Argument(help="a text file")],
    category: Annotated[list[str] | None, typer.Option(help="of those the run knows; all unless given")] = None,
    top: Annotated[int, typer.Option(min=1, help="passages of each category at most")] = 3,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="below it a passage is no evidence")] = 0.5,
) -> None:
    """Find the clauses of a contract: the passages of each category, with their places, as JSON lines."""
    from permafrost.deployment.predictor import Predictor
    from permafrost.deployment.review import review

    text = command_files.read_document(document)
    for found in review(Predictor(run), text, top=top, min_score=min_score, categories=category):
        print(json.dumps(found, ensure_ascii=False))


@app.command()
def explain(
    run: Run,
    text: Annotated[str, typer.Argument(help="the text to answer")],
    pair: Annotated[str | None, typer.Option(help="the second text of a pair")] = None,
) -> None:
    """Answer one text, and say what part each token has in the answer: integrated gradients, as JSON."""
    from permafrost.deployment.attribution import explain
    from permafrost.deployment.predictor import Predictor

    print(json.dumps(explain(Predictor(run), text, pair), ensure_ascii=False))


@app.command()
def average(
    runs: Annotated[
        list[Path], typer.Argument(help="run directories that began alike, as a sweep's trials of one seed")
    ],
    output: Annotated[Path, typer.Option(help="a new directory")],
) -> None:
    """Write the mean of the weights of several runs: one model, which costs what one of them costs."""
    from permafrost.deployment.averaging import average

    average(runs, output)
    print(output)


@app.command()
def chat(run: Run) -> None:
    """Talk with a run of task=dialogue in the terminal; an empty line ends it."""
    from permafrost.deployment.chat import converse
    from permafrost.deployment.predictor import Predictor

    try:
        converse(Predictor(run), input, print)
    except EOFError:
        print()


@app.command()
def export(
    run: Run,
    directory: Annotated[Path | None, typer.Argument(help="a new directory; RUN/exported/FORMAT unless given")] = None,
    to: Annotated[str, typer.Option(help="safetensors or onnx")] = "safetensors",
    dtype: Annotated[str, typer.Option(help="of safetensors: float32, float16 or bfloat16")] = "float32",
) -> None:
    """Copy a run's model: in Hugging Face layout, its weights as float32, float16 or bfloat16; or as an ONNX graph."""
    from permafrost.deployment.export import copy_model, copy_onnx
    from permafrost.deployment.predictor import model_directory

    if to not in ("onnx", "safetensors"):
        raise ConfigError(f"--to {to}: onnx or safetensors")
    directory = directory or run / "exported" / to
    if to == "onnx":
        copy_onnx(model_directory(run), directory)
    else:
        copy_model(model_directory(run), directory, dtype)
    print(directory)


@app.command()
def compress(
    run: Annotated[Path, typer.Argument(help="a run directory")],
    overrides: Annotated[
        list[str], typer.Argument(help="compression=NAME, and keys of the run, as compression.drop.share=0.5")
    ],
    sweep: Annotated[bool, typer.Option("--sweep", help="each combination of values with commas between them")] = False,
) -> None:
    """Make a run's model smaller or faster: `permafrost compress RUN compression=quantization`."""
    from permafrost.runs.compress import compress as compress_run
    from permafrost.runs.compress import compress_each
    from permafrost.runs.compressible import check_overrides
    from permafrost.runs.kept_config import combinations, config_of_run
    from permafrost.settings.config import read_settings

    check_overrides(overrides)
    if sweep:
        compress_each(run, [read_settings(config_of_run(run, each)) for each in combinations(overrides)])
    else:
        compress_run(run, read_settings(config_of_run(run, overrides)))


@app.command()
def synthesize(
    writer: Annotated[Path, typer.Argument(help="a run that writes texts from labels")],
    judge: Annotated[Path, typer.Argument(help="a run that tells labels of texts")],
    train: Annotated[Path, typer.Option(help="the rows that both were trained on, which none repeats")],
    output: Annotated[Path, typer.Option(help="where to write the new rows: .jsonl or .csv")],
    per_label: Annotated[int, typer.Option(min=1, help="rows of each label at most")] = 50,
    candidates: Annotated[int, typer.Option(min=1, help="written for each row that is kept")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    text_column: TextColumn = None,
) -> None:
    """Write new training rows with one run, and keep those of whose label another is surest."""
    from permafrost.deployment.predictor import Predictor
    from permafrost.deployment.synthesis import synthesize

    command_files.check_output(output)
    of_writer, of_judge = Predictor(writer), Predictor(judge)
    known = command_files.read_table(train, ["text"], text_column, own=of_judge.files)["text"].to_pylist()
    how = {"per_label": per_label, "candidates": candidates, "seed": seed}
    rows, refused = synthesize(of_writer, of_judge, known, **how)
    if not rows:
        raise DataError(f"no row is left of what {writer} wrote: {dict(refused)}; train it longer, or on more rows")
    command_files.write_answers(rows, output)
    reasons = "".join(f", {count:,} {why}" for why, count in refused.items() if count)
    print(f"{len(rows):,} rows in {output}; refused{reasons.removeprefix(',') or ' none'}", file=sys.stderr)


@app.command("check-data")
def check_data(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="what you would type after `python train.py`: data=files data.train=PATH")
    ] = None,
    output: Annotated[Path, typer.Option(help="where all problems are written, a JSON line each")] = DEFAULT_PROBLEMS,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="leave training rows in that stand in validation or test, and say so")
    ] = False,
) -> None:
    """Say what is wrong with the data of a run, and what they are, before there is a model. Ends with 3 on errors."""
    from permafrost.runs.check import check_data, report_lines
    from permafrost.settings.composing import CONFIG_DIR, compose_or_explain, configs_by_part
    from permafrost.settings.config import read_data_settings

    errors = 0
    for part, cfg in configs_by_part(compose_or_explain(overrides or [], CONFIG_DIR), CONFIG_DIR).items():
        if allow_leaks:
            cfg.data.allow_leaks = True
        path = output.with_stem(f"{output.stem}-{part}") if part else output
        card, log = check_data(read_data_settings(cfg), path)
        if part:
            print(part)
        for line in report_lines(card, log, path):
            print(line)
        errors += log.errors
    if errors:
        raise SystemExit(DataError.exit_code)


@app.command()
def serve(
    runs: Annotated[list[Path], typer.Argument(help="run directories, compressed/NAME directories among them")],
    port: Annotated[int, typer.Option(min=1024, max=65535)] = 8000,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 is this machine alone; 0.0.0.0 any that reaches it")
    ] = "127.0.0.1",
    threads: Annotated[int, typer.Option(min=1, help="of the models' process")] = 2,
    max_characters: Annotated[int, typer.Option(min=1, help="of a text")] = 20_000,
    max_waiting: Annotated[int, typer.Option(min=1, help="requests in work or waiting")] = 128,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="of a request")] = 30.0,
    batch: Annotated[int, typer.Option(min=1, help="requests answered together")] = 16,
) -> None:
    """Answer over HTTP: a page at /, POST /predict, /health, /metrics and /docs."""
    try:
        from permafrost.deployment.gate import Limits
        from permafrost.deployment.server import check_free, make_server, named, run_until_stopped
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}; pip install -e '.[serve]'") from None

    check_free(host, port)
    limits = Limits(max_characters=max_characters, max_waiting=max_waiting, max_seconds=max_seconds, batch=batch)
    server = make_server(named(runs), threads, limits)
    print(f"http://{host}:{port}", file=sys.stderr)
    code = run_until_stopped(server, host, port)
    sys.stderr.flush()
    os._exit(code)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="a run directory")]) -> None:
    """Make report.html again from the files of a run."""
    from permafrost.reporting.html import write_report
    from permafrost.runs.record import finished_result

    if finished_result(run) is None:
        raise ConfigError(f"{run}: no finished run (result.json); give a run directory")
    print(write_report(run))


@store_app.command("list")
def store_list(directory: StoreDirectory = DEFAULT_STORE) -> None:
    """Show what is stored, the longest unused first."""
    from permafrost.reporting.store_table import print_store

    print_store(directory)


@store_app.command("clear")
def store_clear(directory: StoreDirectory = DEFAULT_STORE) -> None:
    """Remove all that is stored; runs compute it again when they need it."""
    from permafrost.model.store_directory import clear

    print(f"{clear(directory) / 2**20:,.0f} MB freed in {directory}")


def main() -> None:
    """Exit codes are those of a run: 2 usage, 3 data, 4 resources."""
    try:
        app()
    except PermafrostError as error:
        print(f"error: {redacted_text(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(ResourceError.exit_code) from None
