"""Classification: labels and their order, what a row becomes, metrics against scikit-learn, answers."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from permafrost.data.tokens.batching import Batch
from permafrost.errors import DataError
from permafrost.tasks.base import Encoding, encode_texts
from permafrost.tasks.binding import bind_described
from permafrost.tasks.classification import Classification, labels_of
from permafrost.tasks.preparation import encode_table


def table(labels: list[str], source: str = "rows.csv") -> pa.Table:
    where = [f"{source}:{line}" for line, _ in enumerate(labels, start=2)]
    return pa.table({"text": [f"text {label}" for label in labels], "label": labels, "where": where})


def splits(train: list[str], validation: list[str] | None = None, test: list[str] | None = None) -> dict[str, pa.Table]:
    given = {"train": train, "validation": validation or train[:1], "test": test or train[:1]}
    return {name: table(labels, f"{name}.csv") for name, labels in given.items()}


def make_task(num_labels: int = 3) -> Classification:
    return Classification([f"label {i}" for i in range(num_labels)], pooling="last", init="normal")


def batch_of(labels: torch.Tensor) -> Batch:
    """Of which metrics read the labels alone."""
    return Batch(*[labels] * len(Batch._fields))


def scored(task: Classification, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    metrics = task.build_metrics("test")
    for part, answers in zip(logits.split(16), labels.split(16), strict=True):
        task.update_metrics(metrics, part, batch_of(answers))
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["10", "9", "2", "10"], ["2", "9", "10"]),
        (["-1", "0.5", "0"], ["-1", "0", "0.5"]),
        (["b", "a", "10", "9"], ["9", "10", "a", "b"]),
    ],
)
def test_labels_are_sorted_numbers_by_value(given, expected):
    assert labels_of(splits(given)) == expected


def test_the_label_nan_leaves_the_numbers_in_order():
    numbers = [str(number) for number in range(1000)]  # so many, that an unordered pair among them shows
    found = labels_of(splits([*numbers, "nan"]))
    assert [label for label in found if label != "nan"] == numbers


def test_the_order_of_the_user_is_kept():
    assert labels_of(splits(["a", "b", "c"]), ["c", "a", "b"]) == ["c", "a", "b"]


def test_a_label_that_the_user_left_out_is_an_error():
    with pytest.raises(DataError, match=r"'positve'.*did you mean 'positive'"):
        labels_of(splits(["positve", "negative"]), ["positive", "negative"])


def test_one_label_is_an_error():
    with pytest.raises(DataError, match=r"one label only.*'only'"):
        labels_of(splits(["only", "only"]))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_label_unknown_to_train_is_named_with_its_place(split):
    with pytest.raises(DataError, match=rf"{split}\.csv:3: .*'negatve'.*did you mean 'negative'"):
        labels_of(splits(["positive", "negative"], **{split: ["positive", "negatve"]}))


def test_rows_become_tokens_and_label_numbers(tiny_tokenizer):
    encoded = encode_table(
        make_task(),
        pa.table({"text": ["a warm day", "the sea"], "label": ["label 2", "label 0"]}),
        Encoding(tokenizer=tiny_tokenizer, max_length=64),
    )
    written = [tiny_tokenizer.decode(encoded.input_ids[row]) for row in (0, 1)]
    assert written == ["a warm day<|endoftext|>", "the sea<|endoftext|>"]
    assert encoded.labels.tolist() == [2, 0]
    assert encoded.num_targets.tolist() == [1, 1]
    assert encoded.truncated_rows == 0


def test_a_pair_is_written_around_end_of_text(tiny_tokenizer):
    rows = pa.table({"text": ["a warm day"], "text_pair": ["the sea"]})
    encoded = encode_table(make_task(), rows, Encoding(tokenizer=tiny_tokenizer, max_length=64))
    assert tiny_tokenizer.decode(encoded.input_ids[0]) == "a warm day<|endoftext|>the sea<|endoftext|>"
    assert encoded.labels is None


def test_long_rows_are_cut_on_the_right_and_counted(tiny_tokenizer):
    rows = pa.table({"text": ["abcdefgh", "abcd", "abc"]})  # no merges in these: one token for each letter
    assert tiny_tokenizer.tokenize("abcd") == ["a", "b", "c", "d"]
    encoded = encode_table(make_task(), rows, Encoding(tokenizer=tiny_tokenizer, max_length=5))
    written = [tiny_tokenizer.decode(encoded.input_ids[row]).split("<")[0] for row in range(3)]
    assert written == ["abcd", "abcd", "abc"]
    assert encoded.truncated_rows == 1


@pytest.mark.parametrize("num_labels", [2, 5])
def test_metrics_are_those_of_scikit_learn(num_labels):
    generator = torch.Generator().manual_seed(num_labels)
    logits = torch.randn(100, num_labels, generator=generator)
    labels = torch.randint(0, num_labels, (100,), generator=generator)
    found, predicted = scored(make_task(num_labels), logits, labels), logits.argmax(-1)
    # float32 against float64
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-6)
    assert found["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
    assert found["mcc"] == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-6)


def test_ece_is_the_weighted_gap_over_15_bins():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 3, generator=generator), torch.randint(0, 3, (200,), generator=generator)
    confidence, predicted = (values.numpy() for values in logits.softmax(-1).max(-1))
    bins, hits = np.floor(confidence * 15), predicted == labels.numpy()
    gaps = [abs(hits[bins == b].sum() - confidence[bins == b].sum()) for b in np.unique(bins)]
    assert scored(make_task(), logits, labels)["ece"] == pytest.approx(sum(gaps) / 200, abs=1e-6)  # float32 sums


def test_the_metrics_that_are_announced_are_computed():
    generator = torch.Generator().manual_seed(0)
    found = scored(make_task(), torch.randn(20, 3, generator=generator), torch.arange(20) % 3)
    by_label = {f"f1/label {i}" for i in range(3)}
    assert found.keys() | {"loss"} == Classification.metrics_logged.keys() | by_label


def test_f1_of_each_label_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(100, 3, generator=generator), torch.randint(0, 3, (100,), generator=generator)
    found = scored(make_task(), logits, labels)
    expected = f1_score(labels, logits.argmax(-1), average=None)
    assert [found[f"f1/label {i}"] for i in range(3)] == pytest.approx(expected, abs=1e-6)


def test_an_answer_is_the_likeliest_label_and_its_probability():
    answers = make_task().answers([[row] for row in torch.log(torch.tensor([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]))], [])
    assert [answer["label"] for answer in answers] == ["label 1", "label 0"]
    assert [answer["score"] for answer in answers] == pytest.approx([0.7, 0.5], abs=1e-6)  # float32


def test_a_task_comes_back_from_its_description():
    options = {"labels": None, "scaling": "none", "pooling": "mean", "init": "normal", "window": 64}
    task = Classification.from_rows(splits(["good", "bad"]), options)
    again = bind_described(task.describe() | {"max_length": 64})
    assert again.labels == ["bad", "good"]
    assert again.describe() == task.describe()


def test_windows_of_a_long_text_written_out(tiny_tokenizer):
    """Of 9 tokens, 8 in a window with its end: each but the first begins with the last one of the window before."""
    text = "abcdefghi" + "klmnopqrs"
    own = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    end, rows = tiny_tokenizer.eos_token_id, pa.table({"text": [text]})
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=9, max_windows=2)
    (ids,), (unread,), (repeated,) = encode_texts(rows, encoding)
    assert ids.tolist() == [*own[:8], end, *own[7:15], end]
    assert unread == len(own) - 15
    assert repeated == 2  # the token that both have, and the first window's end
