"""Each task end to end on tiny rows: it learns, answers, exports, and its figures do not depend on the store."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from permafrost.deployment.attribution import explain
from permafrost.deployment.predictor import Predictor
from permafrost.errors import ConfigError
from permafrost.tasks.dialogue import Dialogue
from permafrost.tasks.generation import Generation
from tests.runs.conftest import compose_config

LEARNS = ["optimizer.lr=2e-2", "trainer.max_epochs=12", "freezing.blocks=0", "callbacks.early_stopping=null"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("ner", []),
        ("translation", []),
        ("dialogue", []),
        ("multi_label", []),
        ("acts", []),
        ("legal", ["data.max_length=8"]),  # several windows a row
        pytest.param("generation", [], marks=pytest.mark.slow),  # as translation
        pytest.param("sentiment", [], marks=pytest.mark.slow),  # as classification, which test_equal_paths.py holds
        pytest.param("regression", ["data.columns.target=score"], marks=pytest.mark.slow),
    ],
)
def test_figures_are_the_same_with_the_store_and_without(run_tiny, of_task, task, settings):
    options = [*of_task(task), *settings, "trainer.max_epochs=1"]
    stored, _ = run_tiny(*options, "store=on", name="on")
    computed, _ = run_tiny(*options, "store=off", name="off")
    assert stored["tokens"]["trunk"] > 0
    for stage in ("validation", "test"):
        for name, value in computed[stage].items():
            assert stored[stage][name] == pytest.approx(value, abs=1e-5), name  # float32 sums of other batches


# Named entities


PAIRS = ["task=regression", "head=pair", "data.columns={text: [text, other], target: score}"]


@pytest.fixture(scope="module")
def pair_run(tiny, tmp_path_factory):
    """A run that reads the two texts of a row apart."""
    from permafrost.experiment import run

    run_dir = tmp_path_factory.mktemp("pairs") / "run"
    own = ["store=on", f"store.dir={run_dir.parent}/store", "optimizer.lr=3e-3"]
    return run(compose_config(*tiny, *PAIRS, *own), run_dir), run_dir


def test_texts_that_are_read_apart_are_answered_as_in_the_run(pair_run, data_dir):
    _, run_dir = pair_run
    predictor = Predictor(run_dir)
    with (data_dir / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = predictor.predict([row["text"] for row in rows], [row["other"] for row in rows])
    assert [row["value"] for row in found] == pytest.approx(
        [row["prediction"]["value"] for row in lines(run_dir / "predictions.jsonl")], abs=1e-4
    )
    with pytest.raises(ConfigError, match="compares the two texts of a row, and these rows have one"):
        predictor.predict(["sunny"])
    assert "reads the two texts of a pair apart" in (run_dir / "model" / "README.md").read_text()


def test_the_parts_of_an_answer_about_a_pair_add_up(pair_run):
    found = explain(Predictor(pair_run[1]), "sunny and hot", "a day")
    assert sum(token["part"] for token in found["tokens"]) == pytest.approx(found["gain"], rel=0.05, abs=0.01)


def test_a_head_for_pairs_needs_pairs(run_tiny):
    with pytest.raises(ConfigError, match=r"head=pair compares .*data\.columns\.text"):
        run_tiny("task=regression", "head=pair", "data.columns.target=score")


@pytest.mark.slow
def test_fewer_blocks_learn_to_read_texts_apart(run_tiny):
    recovery = ["compression.recover.epochs=1", "compression.recover.alpha=0.5", "compression.recover.hidden=1.0"]
    _, run_dir = run_tiny(*PAIRS, "compression=layer_drop", *recovery)
    version = run_dir / "compressed" / "layer_drop"
    assert len(Predictor(version).model.transformer.h) == 1
    assert Predictor(version).predict(["sunny"], ["a day"])[0].keys() == {"value"}


@pytest.fixture(scope="module")
def ner_run(tiny, of_task, tmp_path_factory):
    from permafrost.experiment import run

    run_dir = tmp_path_factory.mktemp("ner") / "run"
    return run(compose_config(*tiny, *of_task("ner"), *LEARNS), run_dir), run_dir


def test_spans_are_learned_and_scored_for_each_type(ner_run):
    result, _ = ner_run
    assert result["test"]["span_f1"] > 0.9
    assert {"span_f1/warm", "span_f1/cold", "precision", "recall"} <= result["test"].keys()


def test_predictions_are_spans_of_the_words(ner_run):
    from permafrost.tasks.spans import span_scores, spans_of

    result, run_dir = ner_run
    rows = lines(run_dir / "predictions.jsonl")
    predicted = []
    for row in rows:
        text, spans = " ".join(row["tokens"]), row["prediction"]["spans"]
        assert all(text[span["start"] : span["end"]] == span["text"] for span in spans)
        tags = ["O"] * len(row["tokens"])
        starts = {start: number for number, start in enumerate(starts_of(row["tokens"]))}
        for span in spans:
            first, count = starts[span["start"]], len(span["text"].split(" "))
            tags[first : first + count] = [f"B-{span['type']}"] + [f"I-{span['type']}"] * (count - 1)
        assert len(spans_of(tags)) == len(spans)
        predicted.append(tags)
    scores = span_scores([row["tags"] for row in rows], predicted)
    assert scores["span_f1"] == pytest.approx(result["test"]["span_f1"], abs=1e-6)


def starts_of(words: list[str]) -> list[int]:
    return [sum(len(word) + 1 for word in words[:number]) for number in range(len(words))]


def test_the_token_classification_pipeline_has_the_same_scores(ner_run):
    """At each word's last sub-token, which is where the tag is; it knows of no tag but the word's own, so that a span
    may begin with I there."""
    _, run_dir = ner_run
    predictor = Predictor(run_dir)
    words = ["the", "sunny", "hot", "snow", "of", "the", "cold"]
    tagger = pipeline("token-classification", model=str(run_dir / "model"), ignore_labels=[])
    ends = {start + len(word): number for number, (start, word) in enumerate(zip(starts_of(words), words, strict=True))}
    theirs = {ends[token["end"]]: token["entity"] for token in tagger(" ".join(words)) if token["end"] in ends}
    (answer,) = predictor.predict([" ".join(words)])
    tags = ["O"] * len(words)
    for span in answer["spans"]:
        first = starts_of(words).index(span["start"])
        for number in range(first, first + len(span["text"].split())):
            tags[number] = f"{'B' if number == first else 'I'}-{span['type']}"
    assert [theirs[number][2:] for number in range(len(words))] == [tag[2:] for tag in tags]
    assert {tag[2:] for tag in tags} == {"", "warm", "cold"}


def test_evaluate_gives_the_runs_own_figures(ner_run, data_dir):
    from permafrost.command_files import read_table

    result, run_dir = ner_run
    predictor = Predictor(run_dir)
    table = read_table(data_dir / "test.conll", predictor.task.roles, None)
    found = predictor.evaluate(table)
    assert found["span_f1"] == pytest.approx(result["test"]["span_f1"], abs=1e-6)
    assert found["loss"] == pytest.approx(result["test"]["loss"], abs=1e-4)  # batches of another shape


@pytest.mark.slow
@pytest.mark.parametrize("freezing", ["freezing.blocks=0", "freezing.blocks=1"])
def test_a_model_that_looks_both_ways_sees_what_comes(run_tiny, of_task, tmp_path, freezing):
    """A word's tag depends on the one after it: a causal model cannot know, one that looks both ways can."""
    import random

    rng = random.Random(0)
    for name, count in (("train", 80), ("validation", 20), ("test", 20)):
        words = [[rng.choice("abcd") for _ in range(6)] for _ in range(count)]
        tags = [["B-X" if after == "a" else "O" for after in [*row[1:], ""]] for row in words]
        rows = ["".join(f"{w} {t}\n" for w, t in zip(*pair, strict=True)) for pair in zip(words, tags, strict=True)]
        (tmp_path / f"{name}.conll").write_text("\n".join(rows))
    files = [f"data.{name}={tmp_path}/{name}.conll" for name in ("train", "validation", "test")]
    options = ["task=ner", *files, *LEARNS, freezing, "optimizer.lr=1e-2", "trainer.max_epochs=30"]
    causal, _ = run_tiny(*options, name="causal")
    both, run_dir = run_tiny(*options, "model.attention=bidirectional", name="both")
    assert causal["test"]["span_f1"] < 0.7
    assert both["test"]["span_f1"] > 0.9
    row = lines(run_dir / "predictions.jsonl")[0]
    assert Predictor(run_dir).answer([row]) == [row["prediction"]]
    assert "Predictor" in (run_dir / "model" / "README.md").read_text()


def test_without_a_store_too_what_is_frozen_looks_back_alone(run_tiny, of_task):
    """The rest sees the whole row, and a loaded model has to know where that begins."""
    _, run_dir = run_tiny(*of_task("ner"), "model.attention=bidirectional", "store=off", "trainer.max_epochs=1")
    predictor = Predictor(run_dir)
    assert (predictor.trunk, predictor.model.freezing.blocks) == (None, 1)


# Texts


@pytest.fixture(scope="module")
def translation_run(tiny, of_task, tmp_path_factory):
    from permafrost.experiment import run

    run_dir = tmp_path_factory.mktemp("translation") / "run"
    options = [*of_task("translation"), *LEARNS, "trainer.max_epochs=30", "store=off"]
    return run(compose_config(*tiny, *options), run_dir), run_dir


def test_what_is_written_is_scored(translation_run):
    result, run_dir = translation_run
    assert {"loss", "perplexity", "bleu", "chrf", "rouge_l", "exact_match", "distinct_1"} <= result["test"].keys()
    rows = lines(run_dir / "predictions.jsonl")
    from permafrost.tasks.text_scores import text_scores

    scores = text_scores([row["prediction"]["text"] for row in rows], [row["references"] for row in rows])
    assert {name: result["test"][name] for name in scores} == pytest.approx(scores, abs=1e-4)
    assert result["test"]["chrf"] > 20  # the words are those of the answers


def test_the_text_generation_pipeline_writes_the_same(translation_run):
    _, run_dir = translation_run
    row = lines(run_dir / "predictions.jsonl")[0]
    writer = pipeline("text-generation", model=str(run_dir / "model"))
    prompt = f" {row['source']}\n=>"  # as the model's card has it
    assert repr(prompt.replace(row["source"], "TEXT")) in (run_dir / "model" / "README.md").read_text()
    assert writer(prompt, return_full_text=False)[0]["generated_text"].strip() == row["prediction"]["text"]


def test_a_predictor_writes_what_the_run_wrote(translation_run):
    _, run_dir = translation_run
    rows = lines(run_dir / "predictions.jsonl")[:5]
    answers = Predictor(run_dir).predict([row["source"] for row in rows])
    assert answers == [row["prediction"] for row in rows]


def test_the_first_row_is_shown_once_as_the_model_sees_it(run_tiny, of_task, capsys):
    run_tiny(*of_task("translation"), "trainer.max_epochs=2")
    told = capsys.readouterr().out
    assert told.count("with loss on the") == told.count("its tokens: ") == 1


@pytest.mark.parametrize(("task", "kind"), [("translation", Generation), ("dialogue", Dialogue)])
def test_validation_writes_a_few_rows_and_always_the_same_ones(run_tiny, of_task, monkeypatch, capsys, task, kind):
    asked, prompts = [], kind.prompts
    monkeypatch.setattr(
        kind, "prompts", lambda self, rows, encoding: asked.append(rows) or prompts(self, rows, encoding)
    )
    run_tiny(*of_task(task), "trainer.max_epochs=2", "callbacks.best=null", "callbacks.last=null")
    *of_validation, of_test = asked
    assert len(of_validation) == 3  # after each epoch, and at the end
    assert all(rows == of_validation[0] for rows in of_validation)
    assert [len(rows) for rows in (of_validation[0], of_test)] == [4, 16]
    sample = capsys.readouterr().out.count("' -> '")
    assert sample == 2  # one is shown after each epoch


def test_sacrebleu_says_how_it_scored(translation_run, run_tiny, of_task, capsys):
    _, run_dir = translation_run
    assert "bleu by sacrebleu: nrefs:1|case:mixed|eff:no|tok:13a" in (run_dir / "report.html").read_text()
    run_tiny(*of_task("dialogue"), "trainer.max_steps=1")
    assert "chrf by sacrebleu: nrefs:1|case:mixed|eff:yes|nc:6|nw:0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("windows", "share"),
    [([], "51.2%"), (["task=legal", "data.max_windows=2"], "95.1%"), (["task=legal"], None)],
)
def test_how_much_of_long_texts_is_read_is_said(run_tiny, capsys, tmp_path, windows, share):
    """Of rows of 40 tokens and their end a window of 21 has 20 and the end, and two that share 2 have 38 and it."""
    for name in ("train", "validation", "test"):
        rows = "".join(f"{letter * 40},{letter}\n" for letter in "abab")
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")
    files = [f"data.{name}={tmp_path}/{name}.csv" for name in ("train", "validation", "test")]
    _, run_dir = run_tiny(*files, "data.max_length=21", "data.allow_leaks=true", "trainer.max_steps=1", *windows)
    card = json.loads((run_dir / "data.json").read_text())[""]
    assert f"{card['share_read']['test']:.1%}" == (share or "100.0%")
    told = capsys.readouterr().out
    assert f"4 of them cut: {share} read" in told if share else "of them cut" not in told


def test_37_a_causal_task_refuses_to_look_ahead(run_tiny, of_task):
    from permafrost.errors import ConfigError

    with pytest.raises(ConfigError, match=r"model\.attention=bidirectional"):
        run_tiny(*of_task("translation"), "model.attention=bidirectional")


def test_dropout_in_the_trained_part_is_off_while_writing(translation_run):
    """Twice the same answer, from a model that was trained with dropout."""
    _, run_dir = translation_run
    predictor = Predictor(run_dir)
    torch.manual_seed(0)
    first = predictor.predict(["the sunny snow"])
    torch.manual_seed(1)
    assert predictor.predict(["the sunny snow"]) == first


# Dialogues


def test_a_pipeline_gives_each_turns_act(run_tiny, of_task):
    """At the end of text after it, as the card says."""
    _, run_dir = run_tiny(*of_task("acts"), "trainer.max_epochs=1", "trainer.precision=32-true")
    tagger = pipeline("token-classification", model=str(run_dir / "model"), ignore_labels=[])
    end = tagger.tokenizer.eos_token
    for row in lines(run_dir / "predictions.jsonl")[:4]:
        said = zip(row["speakers"], row["turns"], strict=True)
        found = tagger("".join(f"{speaker}: {text}{end}" for speaker, text in said))
        assert [token["entity"] for token in found if token["word"] == end] == row["prediction"]["acts"]


def test_a_pipelines_score_is_the_number_in_the_cards_units(run_tiny):
    own = ["task=regression", "data.columns.target=score", "trainer.max_epochs=1", "trainer.precision=32-true"]
    _, run_dir = run_tiny(*own)
    unit, shift = re.search(r"`score \* (\S+) \+ (\S+)`", (run_dir / "model" / "README.md").read_text()).groups()
    rows = lines(run_dir / "predictions.jsonl")
    answers = pipeline("text-classification", model=str(run_dir / "model"))([row["text"] for row in rows])
    assert [answer["score"] * float(unit) + float(shift) for answer in answers] == pytest.approx(
        [row["prediction"]["value"] for row in rows], abs=1e-3
    )


@pytest.fixture(scope="module")
def dialogue_run(tiny, of_task, tmp_path_factory):
    from permafrost.experiment import run

    run_dir = tmp_path_factory.mktemp("dialogue") / "run"
    return run(compose_config(*tiny, *of_task("dialogue"), *LEARNS, "store=off"), run_dir), run_dir


def test_replies_are_scored_on_each_dialogues_last_turn(dialogue_run):
    from permafrost.tasks.text_scores import text_scores

    result, run_dir = dialogue_run
    rows = lines(run_dir / "predictions.jsonl")
    scores = text_scores([row["prediction"]["text"] for row in rows], [[row["turns"][-1]] for row in rows])
    assert {name: result["test"][name] for name in scores} == pytest.approx(scores, abs=1e-4)
    assert result["test"]["perplexity"] == pytest.approx(2.718281828 ** result["test"]["loss"], rel=1e-4)


def test_the_text_generation_pipeline_replies_the_same(dialogue_run):
    """To the card's prompt."""
    _, run_dir = dialogue_run
    writer = pipeline("text-generation", model=str(run_dir / "model"))
    end, room, compared = writer.tokenizer.eos_token, writer.model.config.n_positions - 8, 0
    for row in lines(run_dir / "predictions.jsonl"):
        *before, (last, _) = zip(row["speakers"], row["turns"], strict=True)
        prompt = "".join(f"{speaker}: {text}{end}" for speaker, text in before) + f"{last}:"
        if len(writer.tokenizer(prompt)["input_ids"]) <= room:  # a run leaves out the turns that are too long ago
            (found,) = writer(prompt, return_full_text=False)
            assert found["generated_text"].strip() == row["prediction"]["text"].strip()
            compared += 1
    assert compared >= 4


def test_a_chat_goes_on_until_nothing_is_said(dialogue_run):
    from permafrost.deployment.chat import converse

    _, run_dir = dialogue_run
    asked, said = iter(["sunny hot", "cold snow", ""]), []
    turns = converse(Predictor(run_dir), lambda _: next(asked), said.append)
    assert [speaker for speaker, _ in turns] == ["A", "B", "A", "B"]
    assert [text for _, text in turns[1::2]] == said
    row = {"speakers": ["A", "B", "A", "B"], "turns": [text for _, text in turns[:3]] + [""]}
    assert Predictor(run_dir).answer([row]) == [{"text": said[1]}]  # with all that was said before


def test_a_chat_needs_a_dialogue(ner_run):
    from permafrost.deployment.chat import converse
    from permafrost.errors import ConfigError

    with pytest.raises(ConfigError, match="task=dialogue"):
        converse(Predictor(ner_run[1]), input, print)


# Several labels


def test_labels_are_learned_and_their_thresholds_kept(run_tiny, of_task):
    result, run_dir = run_tiny(*of_task("multi_label"), *LEARNS)
    assert result["test"]["f1_macro"] > 0.9
    assert {"f1/warm", "f1/cold", "f1_micro", "exact_match"} <= result["test"].keys()
    rows = lines(run_dir / "predictions.jsonl")
    right = [row["labels"] == row["prediction"]["labels"] for row in rows]
    assert sum(right) / len(right) == pytest.approx(result["test"]["exact_match"], abs=1e-6)
    answers = Predictor(run_dir).predict([row["text"] for row in rows])
    assert [answer["labels"] for answer in answers] == [row["prediction"]["labels"] for row in rows]


def test_long_documents_may_have_several_labels(run_tiny, of_task):
    """As conf/task/legal.yaml says how."""
    kind = ["task.kind=multi_label.MultiLabel", "task.monitor=f1_macro", "loss=binary_cross_entropy"]
    options = ["task=legal", *of_task("multi_label")[1:], *kind, "data.max_length=8", "data.max_windows=8"]
    result, run_dir = run_tiny(*options, *LEARNS)
    assert result["test"]["f1_macro"] > 0.8
    rows = lines(run_dir / "predictions.jsonl")
    answers = Predictor(run_dir).predict([row["text"] for row in rows])
    assert [answer["labels"] for answer in answers] == [row["prediction"]["labels"] for row in rows]


def test_the_report_shows_every_tasks_rows(ner_run, translation_run, dialogue_run):
    titles = ["Most wrong test rows", "Written for test rows", "Written for test rows"]
    for (_, run_dir), title in zip((ner_run, translation_run, dialogue_run), titles, strict=True):
        assert f"<h2>{title}</h2>" in (run_dir / "report.html").read_text()


# From one run to another


def test_a_run_begins_with_the_weights_that_another_ended_with(run_tiny, of_task, ner_run, tiny_model_dir):
    """Everything but the new head is frozen, so that what is exported is what it began with."""
    from safetensors.torch import load_file

    _, first = ner_run
    _, second = run_tiny(f"init_from={first}", "freezing=head_only", "freezing.blocks=all", "trainer.max_steps=2")
    before, after = (load_file(run / "model" / "model.safetensors") for run in (first, second))
    names = [name for name in before if name.startswith("transformer.")]
    assert names
    assert all(torch.equal(before[name], after[name]) for name in names)
    pretrained = load_file(tiny_model_dir / "model.safetensors")
    assert not torch.equal(after["transformer.h.0.mlp.c_fc.weight"], pretrained["transformer.h.0.mlp.c_fc.weight"])
    assert "score.weight" in after


def test_a_run_that_is_not_there_is_a_config_error(run_tiny):
    from permafrost.errors import ConfigError

    with pytest.raises(ConfigError, match="init_from=nowhere: no finished run"):
        run_tiny("init_from=nowhere")
