"""`permafrost predict` and `evaluate` of a file: read as the run's own were, and told of what the run does not know."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from permafrost.cli import app
from permafrost.deployment import predictor
from permafrost.deployment.export import export_model
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError, DataError
from permafrost.model.decoding import Decoding
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.acts import Acts
from permafrost.tasks.base import Encoding
from permafrost.tasks.classification import Classification
from permafrost.tasks.dialogue import Dialogue
from permafrost.tasks.generation import Generation
from permafrost.tasks.language_modeling import LanguageModeling
from permafrost.tasks.multi_label import MultiLabel
from permafrost.tasks.tagging import Tagging

SHORT = Decoding(max_new_tokens=3)
CLASSES = Classification(["cold", "warm"], pooling="last", init="normal")
NAMES = Tagging(["O", "B-LOC", "I-LOC"], init="normal")
CODE = Generation("{source}\n=>{target}", SHORT)
REPLIES = Dialogue("all", SHORT)
CONLL = "New B-LOC\nYork I-LOC\n\nit O\nis O\nbig O\n"


@pytest.fixture
def exported(tiny_config, tiny_tokenizer, tmp_path):
    """A task -> the directory of a model of it, which has learned nothing."""
    from transformers import GPT2Model

    def go(task, *, max_length: int = 64, tokenizer=tiny_tokenizer, **files):
        torch.manual_seed(0)
        backbone = GPT2Model(tiny_config)
        model = GPT2WithHead(backbone, task.build_head(backbone), Freezing(embeddings=False, blocks=0)).eval()
        encoding = Encoding(tokenizer=tokenizer, max_length=max_length)
        export_model(model, task, encoding, tmp_path / task.name, "card", files=files)
        return tmp_path / task.name

    return go


def invoke(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def predicted(*arguments) -> list[dict]:
    return [json.loads(line) for line in invoke("predict", *arguments).stdout.splitlines()]


def written(path, content: str | list[dict]):
    path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    return path


# What the run does not know


@pytest.mark.parametrize(
    ("task", "name", "content", "told"),
    [
        (CLASSES, "a.csv", "text,label\nx,warm\ny,wram\nz,cool\n", ["a.csv:3: {} label 'wram'", "a.csv:4: {} label"]),
        (
            MultiLabel(["cold", "warm"], pooling="last", init="normal"),
            "a.jsonl",
            [{"text": "x", "labels": ["wram", "cold"]}, {"text": "y", "labels": ["x"]}],
            ["a.jsonl:1: {} label 'wram'", "a.jsonl:2: {} label 'x'"],
        ),
        (
            Acts(["ask", "tell"], init="normal"),
            "a.jsonl",
            [{"turns": ["x", "y"], "acts": ["ask", "tall"]}],
            ["a.jsonl:1: {} label 'tall'; did you mean 'tell'?"],
        ),
        (NAMES, "a.conll", CONLL + "in O\nRome B-LOK\nor O\nOslo B-PER\n", ["a.conll:8: {} type 'LOK'", "a.conll:10:"]),
    ],
    ids=["label", "labels", "acts", "tags"],
)
def test_what_a_run_does_not_know_is_told_with_its_place(exported, tmp_path, task, name, content, told):
    with pytest.raises(DataError) as raised:
        invoke("evaluate", exported(task), "--data", written(tmp_path / name, content))
    assert raised.value.exit_code == 3
    lines = str(raised.value).splitlines()
    expected = [line.format("the run does not know the") for line in told]
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


# As the run's own files


def test_columns_of_the_run_are_those_of_its_verbs(exported, tmp_path):
    run = exported(CODE, columns={"source": "rewritten_intent", "target": "snippet"})
    both = [{"intent": "a", "rewritten_intent": "b", "code": "c", "snippet": "d"}]
    path = written(tmp_path / "a.jsonl", both)
    assert predicted(run, "--input", path)[0]["source"] == "b"
    assert predicted(run, "--input", path, "--text", "intent")[0]["source"] == "a"
    own = invoke("evaluate", run, "--data", path)
    named = invoke("evaluate", run, "--data", path, "--text", "rewritten_intent", "--label", "snippet")
    other = invoke("evaluate", run, "--data", path, "--text", "intent", "--label", "code")
    assert own.stdout == named.stdout != other.stdout
    assert own.stderr == ""


def test_a_file_without_the_runs_columns_is_read_by_the_names_of_its_own(exported, tmp_path):
    run = exported(CLASSES, columns={"text": "clause", "label": "category"})
    done = invoke("evaluate", run, "--data", written(tmp_path / "a.csv", "sentence,category\nx,warm\ny,cold\n"))
    assert done.stderr.splitlines() == ["--text sentence, found by its name"]
    (answer,) = predicted(run, "--input", written(tmp_path / "b.csv", "clause,text\nx,y\n"))
    assert answer["text"] == "x"


def test_a_format_of_the_run_is_that_of_its_verbs(exported, tmp_path):
    run = exported(NAMES, columns={"token": 0, "tag": -1}, format="conll")
    path = written(tmp_path / "test.tsv", CONLL.replace(" ", "\t"))
    done = invoke("evaluate", run, "--data", path)
    assert done.stdout == invoke("evaluate", run, "--data", written(tmp_path / "test.conll", CONLL)).stdout
    told = "test.tsv is read as conll, as the run's own files were; --format says otherwise"
    assert done.stderr.splitlines() == [told]
    assert invoke("evaluate", run, "--data", written(tmp_path / "a.iob2", CONLL)).stderr == ""
    rows = predicted(run, "--input", written(tmp_path / "a.tsv", "text\nNew York\n"), "--format", "tsv")
    assert [row["text"] for row in rows] == ["New York"]


def test_a_format_that_there_is_not_is_named(exported, tmp_path):
    with pytest.raises(ConfigError, match=r"--format conl; did you mean 'conll'"):
        invoke("predict", exported(NAMES), "--input", written(tmp_path / "a.conll", CONLL), "--format", "conl")


def test_a_model_that_does_not_say_how_its_files_were_read_finds_out(exported, tmp_path):
    run = exported(CLASSES, columns={"text": "b"}, format="tsv")
    described = json.loads((run / "permafrost.json").read_text())
    del described["columns"], described["format"]
    (run / "permafrost.json").write_text(json.dumps(described))
    (answer,) = predicted(run, "--input", written(tmp_path / "a.csv", "text,b\nx,y\n"))
    assert answer["text"] == "x"


def test_parallel_text_is_evaluated_from_two_files(exported, tmp_path):
    run = exported(CODE)
    sides = [written(tmp_path / "a.en", "one\ntwo\n"), written(tmp_path / "a.de", "eins\nzwei\n")]
    scores = json.loads(invoke("evaluate", run, "--data", sides[0], "--data", sides[1]).stdout)
    rows = [{"source": "one", "target": "eins"}, {"source": "two", "target": "zwei"}]
    assert scores == json.loads(invoke("evaluate", run, "--data", written(tmp_path / "a.jsonl", rows)).stdout)
    with pytest.raises(ConfigError, match="3 files: give one, or the two of parallel text"):
        invoke("evaluate", run, *(word for path in (*sides, sides[0]) for word in ("--data", path)))


@pytest.mark.usefixtures("no_report")
def test_a_run_keeps_how_it_was_told_to_read_its_files(run_tiny, data_dir, tmp_path):
    for name in ("train", "validation", "test"):
        shutil.copy(data_dir / f"{name}.conll", tmp_path / f"{name}.tsv")
    files = [f"data.{name}={tmp_path}/{name}.tsv" for name in ("train", "validation", "test")]
    told = ["data.format=iob2", "data.columns.token=0", "data.columns.tag=1"]
    result, run_dir = run_tiny("task=ner", *files, *told, "trainer.max_steps=2")
    described = json.loads((run_dir / "model" / "permafrost.json").read_text())
    assert (described["columns"], described["format"]) == ({"token": 0, "tag": 1}, "iob2")
    scores = json.loads(invoke("evaluate", run_dir, "--data", tmp_path / "test.tsv").stdout)
    assert scores["span_f1"] == pytest.approx(result["test"]["span_f1"], abs=1e-6)


# What is asked, without its answer


@pytest.mark.parametrize("content", [CONLL, "New\nYork\n\nit\nis\nbig\n"], ids=["tagged", "words"])
def test_words_of_a_column_file_are_answered(exported, tmp_path, content):
    run = exported(NAMES)
    rows = predicted(run, "--input", written(tmp_path / "a.conll", content))
    assert [row["tokens"] for row in rows] == [["New", "York"], ["it", "is", "big"]]
    expected = Predictor(run).answer([{"tokens": row["tokens"]} for row in rows])
    assert [{"spans": row["spans"]} for row in rows] == expected
    listed = written(tmp_path / "a.jsonl", [{"tokens": row["tokens"]} for row in rows])
    assert [row["spans"] for row in predicted(run, "--input", listed)] == [row["spans"] for row in rows]


def test_texts_of_a_file_are_split_into_words_as_one_text_is(exported, tmp_path):
    run = exported(NAMES)
    (row,) = predicted(run, "--input", written(tmp_path / "a.csv", "text,tokens\nNew York,2\n"))
    assert {"spans": row["spans"]} == Predictor(run).predict(["New York"])[0]


@pytest.mark.parametrize("turns", [["hi"], ["hi", "yes"], ["hi", "yes", "no"]])
def test_a_dialogue_is_answered_after_its_last_turn(exported, tmp_path, monkeypatch, turns):
    asked = []
    monkeypatch.setattr(predictor, "write_from", lambda *_: ["well"])
    prompts = Dialogue.prompts
    monkeypatch.setattr(
        Dialogue, "prompts", lambda self, rows, encoding: asked.extend(rows) or prompts(self, rows, encoding)
    )
    (row,) = predicted(exported(REPLIES), "--input", written(tmp_path / "a.jsonl", [{"turns": turns}]))
    assert (row["turns"], row["text"]) == (turns, "well")
    assert asked == [{"speakers": [*row["speakers"], "AB"[len(turns) % 2]], "turns": [*turns, ""]}]


def test_a_dialogue_of_one_turn_has_a_label_and_nothing_to_be_scored_by(exported, tmp_path):
    path = written(tmp_path / "a.jsonl", [{"turns": ["hi"]}])
    (row,) = predicted(exported(Acts(["ask", "tell"], init="normal")), "--input", path)
    assert len(row["acts"]) == 1
    with pytest.raises(DataError, match="1 turns in column 'turns'; a dialogue needs two or more"):
        invoke("evaluate", exported(REPLIES), "--data", path)


# What is not read


def test_how_much_of_long_rows_is_read_is_said(exported, tmp_path):
    """Of 40 tokens and their end a window of 21 has 20 and the end; the other row has one, and an end."""
    run = exported(CLASSES, max_length=21)
    path = written(tmp_path / "a.csv", f"text,label\n{'a' * 40},warm\nb,cold\n")
    told = "1 of 2 rows cut: 53.5% read; the model reads 21 tokens at once"
    assert told in invoke("predict", run, "--input", path).stderr
    assert told in invoke("evaluate", run, "--data", path).stderr
    assert "1 of 1 rows cut" in invoke("predict", run, "a" * 40).stderr
    assert "cut" not in invoke("predict", run, "a").stderr


@pytest.mark.parametrize(
    ("task", "rows", "share"),
    [
        (CODE, [{"source": "a" * 40}, {"source": "b"}], "46.8%"),  # 15 of 40, and in each row 3 of the template
        (LanguageModeling(decoding=SHORT), [{"text": "a" * 40}, {"text": "b"}], "46.3%"),  # the last 18 of 40
        (REPLIES, [{"turns": ["a" * 40, "b", "c"]}, {"turns": ["b"]}], "28.3%"),  # not the first turn's 43
    ],
    ids=["generation", "language_modeling", "dialogue"],
)
def test_how_much_of_what_is_asked_is_read_is_said(exported, tmp_path, task, rows, share):
    """Of a window of 21 tokens the text that is written takes 3."""
    path = written(tmp_path / "a.jsonl", rows)
    told = f"1 of 2 rows cut: {share} read; the model reads 21 tokens at once"
    assert told in invoke("predict", exported(task, max_length=21), "--input", path).stderr


# What is refused, and what is said of it


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--input", "a.csv", "--output", "nowhere/b.jsonl"], ConfigError, "no directory nowhere; make it first"),
        (["--input", "a.csv", "--output", "b.tsv"], ConfigError, "written as .jsonl or .csv"),
        (["a text", "--output", "b.jsonl"], ConfigError, "--output is for the rows of a file"),
        (["caf\udce9"], ConfigError, "half a character at its place 3"),
        (["--input", "other.csv"], DataError, "set --text NAME"),
        (["--input", "a.dat"], DataError, r"set --format csv\|"),
    ],
)
def test_what_cannot_be_answered_is_told_in_words_of_the_command(
    exported, tmp_path, monkeypatch, arguments, error, message
):
    run = exported(CLASSES)
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.csv", "text\nx\n")
    written(tmp_path / "a.dat", "text\nx\n")
    written(tmp_path / "other.csv", "column\nx\n")
    with pytest.raises(error, match=message):
        invoke("predict", run, *arguments)


def test_an_answer_takes_no_texts_place(exported, tmp_path):
    path = written(tmp_path / "a.jsonl", [{"text": "ab"}])
    (row,) = predicted(exported(LanguageModeling(decoding=SHORT)), "--input", path)
    assert row["text"] == "ab"
    assert row["prediction"].keys() == {"text"}


def test_a_text_that_is_cut_is_not_explained(exported):
    run = exported(CLASSES, max_length=8)
    with pytest.raises(ConfigError, match="longer than the 8 tokens that are seen at once"):
        invoke("explain", run, "a" * 20)
    assert len(json.loads(invoke("explain", run, "a" * 7).stdout)["tokens"]) == 8


def test_a_report_is_of_a_run_that_is_done(exported, tmp_path):
    with pytest.raises(ConfigError, match=r"no finished run \(result.json\)"):
        invoke("report", exported(CLASSES))
    (tmp_path / "result.json").write_text('{"status": "failed"}')
    with pytest.raises(ConfigError, match="no finished run"):
        invoke("report", tmp_path)


def test_texts_that_are_drawn_have_one_figure(exported, tmp_path):
    run = exported(Generation("{source}\n=>{target}", Decoding(max_new_tokens=8, do_sample=True)))
    path = written(tmp_path / "a.jsonl", [{"source": letter, "target": letter * 3} for letter in "abcd"])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = invoke("evaluate", run, "--data", path).stdout
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert invoke("evaluate", run, "--data", path).stdout == first


def test_a_dialogue_in_which_nobody_replies_is_told(exported, tmp_path):
    path = written(tmp_path / "a.jsonl", [{"turns": ["hi", "yes"]}])
    with pytest.raises(
        DataError, match=r"no turn is by 'bot', who replies \(task.replies\); there are turns by 'A', 'B'"
    ):
        invoke("evaluate", exported(Dialogue("bot", SHORT, ["user", "bot"])), "--data", path)


def test_a_model_is_exported_into_its_own_directory(exported):
    """The second time without what the first one left there."""
    run = exported(CLASSES)
    for dtype in ("float32", "float16"):
        invoke("export", run, run / "exported" / dtype, "--dtype", dtype)
    assert (run / "exported" / "float16" / "model.safetensors").is_file()
    assert not (run / "exported" / "float16" / "exported").exists()


@pytest.mark.slow
def test_a_graph_is_exported_into_its_models_directory(exported):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    run = exported(CLASSES)
    invoke("export", run, "--to", "onnx")
    graph = run / "exported" / "onnx"
    assert (graph / "model.onnx").is_file()
    assert not (graph / "exported").exists()
    assert json.loads((graph / "permafrost.json").read_text())["trunk"] is None
    assert Predictor(graph).predict(["warm"])[0]["label"] == Predictor(run).predict(["warm"])[0]["label"]


def test_a_model_that_writes_ends_no_text_whatever_tokenizer_it_began_with(exported, tiny_tokenizer, tmp_path):
    """As where it began with a classifier, whose exported tokenizer ends every text."""
    from transformers import AutoTokenizer

    from permafrost.data.tokens.tokenization import with_end_of_text

    ending = with_end_of_text(tiny_tokenizer)
    run = exported(CODE, tokenizer=ending)
    plain = AutoTokenizer.from_pretrained(run)
    assert plain("warm")["input_ids"] == tiny_tokenizer("warm")["input_ids"]
    assert ending("warm")["input_ids"] == [*plain("warm")["input_ids"], plain.eos_token_id]
