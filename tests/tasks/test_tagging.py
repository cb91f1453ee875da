"""Named entities: which sub-token carries which tag, windows that score every word once, and answers with offsets."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from permafrost.data.tokens.batching import padded_batch
from permafrost.errors import DataError
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import Encoding
from permafrost.tasks.losses import CrossEntropy
from permafrost.tasks.preparation import encode_table
from permafrost.tasks.tagging import Tagging, last_tokens, spans_with_characters, split_words, tags_of

TAGS = ["O", "B-A", "I-A"]
TASK = Tagging(TAGS, init="normal")


def table(*rows: tuple[str, str]) -> pa.Table:
    """Of words and tags that are apart by blanks."""
    return pa.table({"tokens": [words.split() for words, _ in rows], "tags": [tags.split() for _, tags in rows]})


def scored(split) -> list[tuple[int, int, str]]:
    """(source row, token id, tag) of every scored token."""
    return [
        (int(split.source_rows[row]), int(token), TAGS[label])
        for row in range(len(split))
        for token, label in zip(split.input_ids[row], split.labels[row], strict=True)
        if label != -100
    ]


def test_the_tag_is_on_each_words_last_sub_token(tiny_tokenizer):
    """No merges in these words: a token for each letter, and one for the blank before."""
    split = encode_table(TASK, table(("ab Q xyz", "B-A O I-A")), Encoding(tokenizer=tiny_tokenizer, max_length=64))
    written = tiny_tokenizer.convert_ids_to_tokens(split.input_ids[0])
    assert written == ["a", "b", "Ġ", "Q", "Ġ", "x", "y", "z"]
    assert split.labels[0].tolist() == [-100, 1, -100, 0, -100, -100, -100, 2]
    assert split.num_targets.tolist() == [3]


@pytest.mark.parametrize("words", [["naïve", "日本語", "🎉", "x"], ["🎉🎉"], ["é"] * 5, ["a"]])
def test_the_last_sub_token_ends_where_its_word_does(tiny_tokenizer, words):
    encoded = tiny_tokenizer(" ".join(words), return_offsets_mapping=True)
    last = last_tokens(words, encoded["offset_mapping"])
    for count, token in enumerate(last, 1):
        so_far = tiny_tokenizer.decode(encoded["input_ids"][: token + 1])
        assert so_far == " ".join(words[:count])


@pytest.mark.parametrize("right_context", [0, 2])
@pytest.mark.parametrize("max_length", [8, 16])
def test_every_word_of_a_long_sentence_is_scored_once(tiny_tokenizer, max_length, right_context):
    words = " ".join(f"w{i}" for i in range(40))
    tags = " ".join(TAGS[i % 3] for i in range(40))
    task = Tagging(TAGS, init="normal", right_context=right_context)
    rows = table((words, tags), ("one", "O"))
    whole = encode_table(task, rows, Encoding(tokenizer=tiny_tokenizer, max_length=1000))
    split = encode_table(task, rows, Encoding(tokenizer=tiny_tokenizer, max_length=max_length))
    assert len(whole) == 2 < len(split)
    assert scored(split) == scored(whole)
    assert len(scored(split)) == 41 == split.num_targets.sum()
    assert split.truncated_rows == 0


def test_rows_of_later_slices_count_on(tiny_tokenizer):
    rows = table(("a b", "O O"), ("c", "O"), ("d", "O"))
    parts = TASK.encode([rows.slice(0, 2), rows.slice(2)], Encoding(tokenizer=tiny_tokenizer, max_length=64))
    assert [part.source_rows.tolist() for part in parts] == [[0, 1], [2]]


@pytest.fixture
def model(tiny_backbone):
    torch.manual_seed(3)
    return GPT2WithHead(tiny_backbone, TASK.build_head(tiny_backbone), Freezing(embeddings=True, blocks=1)).eval()


def test_logits_and_loss_are_those_of_transformers(tiny_tokenizer, model):
    from permafrost.deployment.export import to_transformers

    rows = table(("ab Q xyz", "B-A O I-A"), ("a b c d e", "O O B-A I-A I-A"))
    split = encode_table(TASK, rows, Encoding(tokenizer=tiny_tokenizer, max_length=64))
    batch = padded_batch(split, np.array([0, 1]))
    stock = to_transformers(model, TASK)
    with torch.no_grad():
        loss_sum, logits = TASK.loss_sum(model, batch, CrossEntropy())
        expected = [stock(batch.input_ids[row : row + 1, : batch.lengths[row]]).logits[0] for row in range(2)]
    of_words = torch.cat([states[torch.tensor(split.labels[row] != -100)] for row, states in enumerate(expected)])
    torch.testing.assert_close(logits, of_words, rtol=1e-5, atol=1e-5)  # two ways to the same float32 sums
    labels = torch.tensor([1, 0, 2, 0, 0, 1, 2, 2])
    torch.testing.assert_close(loss_sum, torch.nn.functional.cross_entropy(of_words, labels, reduction="sum"))


def test_metrics_are_those_of_the_sentences(tiny_tokenizer, model):
    """Whatever the batches and the windows, the score is that of whole sentences."""
    words = " ".join(f"w{i}" for i in range(30))
    rows = table((words, " ".join(TAGS[i % 3] for i in range(30))), ("a b c", "B-A I-A O"), ("x", "B-A"))
    scores = []
    for size in (1, 3):
        split = encode_table(TASK, rows, Encoding(tokenizer=tiny_tokenizer, max_length=64))
        metrics = TASK.build_metrics("test")
        for start in range(0, len(split), size):
            batch = padded_batch(split, np.arange(start, min(start + size, len(split))))
            with torch.no_grad():
                TASK.update_metrics(metrics, TASK.loss_sum(model, batch, CrossEntropy())[1], batch)
        scores.append({name: float(value) for name, value in metrics.compute().items()})
    assert scores[0] == scores[1]


def test_answers_have_the_characters_of_the_joined_words():
    logits = torch.nn.functional.one_hot(torch.tensor([1, 2, 0, 1]), 3).float() * 9
    row = {"tokens": ["New", "York", "by", "Bob"]}
    answers = TASK.answers([[logits[:3], logits[3:]]], [row])  # two windows
    assert answers == [
        {
            "spans": [
                {"type": "A", "start": 0, "end": 8, "text": "New York"},
                {"type": "A", "start": 12, "end": 15, "text": "Bob"},
            ]
        }
    ]


def test_a_text_is_split_into_words_and_its_answers_have_its_characters():
    row = split_words("  Ms. O'Neil,\n(the 3rd)")
    assert row["tokens"] == ["Ms", ".", "O", "'", "Neil", ",", "(", "the", "3rd", ")"]
    assert spans_with_characters(["B-A", "O", "B-A", "I-A", "I-A", *"OOOOO"], row) == [
        {"type": "A", "start": 2, "end": 4, "text": "Ms"},
        {"type": "A", "start": 6, "end": 12, "text": "O'Neil"},
    ]


def test_where_words_have_no_blanks_between_them_each_character_is_one():
    assert split_words("IBMは東京2025年")["tokens"] == ["IBM", "は", "東", "京", "2025", "年"]


@pytest.mark.parametrize("text", ["", "   ", "x", "🎉", "日本語のテキスト", "word " * 500])
def test_any_text_is_answered(tiny_tokenizer, model, text):
    split = encode_table(
        TASK, pa.Table.from_pylist([split_words(text)]), Encoding(tokenizer=tiny_tokenizer, max_length=16)
    )
    with torch.no_grad():
        outputs = []
        for row in range(len(split)):
            batch = padded_batch(split, np.array([row]))
            outputs += TASK.by_row(TASK.outputs(model, batch), batch)
    (answer,) = TASK.answers([outputs], [split_words(text)])
    assert all(text[span["start"] : span["end"]] == span["text"] for span in answer["spans"])


def splits(train: list[list[str]], test: list[list[str]]) -> dict[str, pa.Table]:
    def table(name: str, rows: list[list[str]]) -> pa.Table:
        return pa.table({"tags": rows, "where": [f"{name}.conll:{i}" for i in range(len(rows))]})

    return {name: table(name, test if name == "test" else train) for name in ("train", "validation", "test")}


def test_tags_are_those_of_train_in_pairs():
    assert tags_of(splits([["B-B", "O"], ["B-A"]], [["O"]])) == ["O", "B-A", "I-A", "B-B", "I-B"]


def test_types_that_train_does_not_have_are_named_with_their_places():
    with pytest.raises(DataError) as raised:
        tags_of(splits([["B-PER", "O"]], [["O"], ["B-PRE", "I-PRE"], ["B-LOC"]]))
    assert str(raised.value).splitlines() == [
        "test.conll:1, word 1: test has the type 'PRE', which train has not; did you mean 'PER'?",
        "test.conll:2, word 1: test has the type 'LOC', which train has not; known here: PER",
    ]


def test_tags_without_any_type_are_an_error():
    with pytest.raises(DataError, match="no tag but O"):
        tags_of(splits([["O", "O"]], [["O"]]))
