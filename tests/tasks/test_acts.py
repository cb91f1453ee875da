"""A label for each turn: on its last token, in one window, whatever is longer than that."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from permafrost.data.fields.labels import labels_of
from permafrost.data.tokens.batching import padded_batch
from permafrost.errors import ConfigError, DataError
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.acts import Acts
from permafrost.tasks.base import Encoding
from permafrost.tasks.losses import CrossEntropy
from permafrost.tasks.preparation import encode_table

END = "<|endoftext|>"
TASK = Acts(["ask", "tell"], init="normal")
ROWS = pa.table(
    {
        "speakers": [["A", "B", "A"], ["A", "B"]],
        "turns": [["hi", "yes", "no"], ["x", "🦊 冰"]],
        "acts": [["ask", "tell", "ask"], ["tell", "tell"]],
    }
)


def encoded(tokenizer, rows=ROWS, max_length: int = 64):
    return encode_table(TASK, rows, Encoding(tokenizer=tokenizer, max_length=max_length))


def test_the_label_is_on_each_turns_end_of_text(tiny_tokenizer):
    split = encoded(tiny_tokenizer)
    ids, labels = split.input_ids[0], split.labels[0]
    assert tiny_tokenizer.decode(ids) == f"A: hi{END}B: yes{END}A: no{END}"
    places = np.flatnonzero(labels != -100)
    assert ids[places].tolist() == [tiny_tokenizer.eos_token_id] * 3
    assert labels[places].tolist() == [0, 1, 0]
    assert split.num_targets.tolist() == [3, 2]


@pytest.mark.parametrize("max_length", [8, 12, 24])
def test_every_turn_is_scored_once_also_the_longest(tiny_tokenizer, max_length):
    turns = ["x", "y" * 100, "", "z", "w" * 9]
    row = pa.table({"speakers": [list("ABABA")], "turns": [turns], "acts": [["ask", "tell", "ask", "ask", "tell"]]})
    split = encoded(tiny_tokenizer, row, max_length)
    labels = np.concatenate([split.labels[i] for i in range(len(split))])
    assert labels[labels != -100].tolist() == [0, 1, 0, 0, 1]
    assert split.lengths.max() <= max_length
    assert split.truncated_rows == 1  # and said
    assert set(split.source_rows.tolist()) == {0}


def test_rows_without_labels_are_answered_turn_by_turn(tiny_tokenizer, tiny_backbone):
    model = GPT2WithHead(tiny_backbone, TASK.build_head(tiny_backbone), Freezing(embeddings=False, blocks=0)).eval()
    split = encoded(tiny_tokenizer, ROWS.drop_columns("acts"))
    batch = padded_batch(split, np.arange(2))
    with torch.no_grad():
        outputs = TASK.outputs(model, batch)
    answers = TASK.answers([[part] for part in TASK.by_row(outputs, batch)], ROWS.to_pylist())
    assert [len(answer["acts"]) for answer in answers] == [3, 2]


def test_the_loss_and_the_metrics_are_of_all_turns(tiny_tokenizer, tiny_backbone):
    model = GPT2WithHead(tiny_backbone, TASK.build_head(tiny_backbone), Freezing(embeddings=False, blocks=0)).eval()
    batch = padded_batch(encoded(tiny_tokenizer), np.arange(2))
    total, logits = TASK.loss_sum(model, batch, CrossEntropy())
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1, 1]), reduction="sum")
    torch.testing.assert_close(total, expected)
    metrics = TASK.build_metrics("test")
    TASK.update_metrics(metrics, torch.eye(2)[[0, 1, 1, 1, 0]], batch)
    assert metrics.compute()["accuracy"].item() == pytest.approx(3 / 5)


def table(acts: list[list[str]]) -> pa.Table:
    return pa.table({"acts": acts, "where": [f"f:{i}" for i in range(1, len(acts) + 1)]})


def test_labels_are_sorted_numbers_by_value():
    rows = table([["10", "9"], ["2", "9"]])
    assert labels_of({"train": rows, "validation": rows, "test": rows}) == ["2", "9", "10"]


def test_faults_are_told_all_at_once_with_their_places():
    train, test = table([["ask", "tell"]]), table([["ask", "tel"], ["tell", "asks"]])
    with pytest.raises(DataError) as caught:
        labels_of({"train": train, "validation": train, "test": test})
    assert str(caught.value).splitlines() == [
        "f:1: test has the label 'tel', which train has not; did you mean 'tell'?",
        "f:2: test has the label 'asks', which train has not; did you mean 'ask'?",
    ]


def test_a_marker_that_leaves_no_room_for_its_turn_is_refused(tiny_tokenizer):
    rows = pa.table({"speakers": [["a speaker of many tokens"]], "turns": [["a day"]], "acts": [["ask"]]})
    with pytest.raises(ConfigError, match="what stands before a turn has"):
        encode_table(TASK, rows, Encoding(tokenizer=tiny_tokenizer, max_length=6))
