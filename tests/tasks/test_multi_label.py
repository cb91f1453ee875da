"""Several labels a row: thresholds by brute force, scores by scikit-learn, answers above their thresholds."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import f1_score

from permafrost.data.tokens.batching import Batch
from permafrost.errors import DataError
from permafrost.tasks.base import Encoding
from permafrost.tasks.binding import bind_described
from permafrost.tasks.losses import BinaryCrossEntropy
from permafrost.tasks.multi_label import MultiLabel, all_labels_of, best_thresholds, label_scores
from permafrost.tasks.preparation import encode_table

LABELS = ["a", "b", "c"]


def make_task(thresholds: list[float] | None = None) -> MultiLabel:
    return MultiLabel(LABELS, pooling="last", init="normal", thresholds=thresholds)


def batch_of(labels: torch.Tensor) -> Batch:
    return Batch(*[labels] * len(Batch._fields))


def drawn(seed: int, rows: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels that agree more than by chance; c is rare."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(rows, 3, generator=generator) < torch.tensor([0.5, 0.3, 0.05])).float()
    return labels * 1.5 - 1 + torch.randn(rows, 3, generator=generator), labels


def test_labels_become_ones_in_their_order(tiny_tokenizer):
    rows = pa.table({"text": ["x", "y", "z"], "labels": [["c", "a"], [], ["b"]]})
    split = encode_table(make_task(), rows, Encoding(tokenizer=tiny_tokenizer, max_length=8))
    assert split.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert split.num_targets.tolist() == [1, 1, 1]


def test_thresholds_are_the_best_of_all():
    logits, labels = drawn(0, rows=80)
    probabilities = logits.sigmoid()
    thresholds = best_thresholds(probabilities, labels)
    for column in range(3):
        best = max(
            f1_score(labels[:, column], probabilities[:, column] >= threshold)
            for threshold in [0.0, *(probabilities[:, column] + 1e-7).tolist(), *probabilities[:, column].tolist()]
        )
        found = f1_score(labels[:, column], probabilities[:, column] >= thresholds[column])
        assert found == pytest.approx(best, abs=1e-9)


def test_a_label_that_validation_does_not_have_keeps_the_middle():
    assert best_thresholds(torch.rand(5, 1), torch.zeros(5, 1)).tolist() == [0.5]


def test_equal_probabilities_are_not_told_apart():
    """The true one of the two that are equal cannot be had without the other."""
    thresholds = best_thresholds(torch.tensor([[0.8], [0.8], [0.2]]), torch.tensor([[1.0], [0.0], [0.0]]))
    assert 0.2 < thresholds.item() < 0.8


def test_validation_chooses_thresholds_and_test_takes_them():
    task = make_task()
    for stage, seed in (("validation", 0), ("test", 1)):
        logits, labels = drawn(seed)
        metrics = task.build_metrics(stage)
        for part, answers in zip(logits.split(64), labels.split(64), strict=True):
            task.update_metrics(metrics, part, batch_of(answers))
        scores = {name: float(value) for name, value in metrics.compute().items()}
        chosen = best_thresholds(*(part if i else part.sigmoid() for i, part in enumerate(drawn(0))))
        assert torch.equal(task.thresholds, chosen)
        predicted = logits.sigmoid() >= chosen
        assert scores["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
        assert scores["f1_micro"] == pytest.approx(f1_score(labels, predicted, average="micro"), abs=1e-6)
        assert scores["f1/b"] == pytest.approx(f1_score(labels[:, 1], predicted[:, 1]), abs=1e-6)
        assert scores["exact_match"] == pytest.approx(float((predicted == labels).all(1).float().mean()), abs=1e-6)


def test_one_label_alone_is_scored_by_itself():
    true, predicted = np.array([[True], [True], [False]]), np.array([[True], [False], [False]])
    found = label_scores(predicted, true, ["unfair"])
    assert found["f1_macro"] == found["f1_micro"] == found["f1/unfair"] == pytest.approx(2 / 3)
    assert found["exact_match"] == pytest.approx(2 / 3)


def test_answers_are_the_labels_at_or_above_their_thresholds():
    task = make_task([0.5, 0.9, 0.25])
    logits = torch.logit(torch.tensor([[0.6, 0.8, 0.3], [0.1, 0.1, 0.1]]))
    answers = task.answers([[row] for row in logits], [])
    assert answers[0]["labels"] == ["a", "c"]
    assert answers[0]["scores"] == pytest.approx([0.6, 0.3])
    assert answers[1] == {"labels": [], "scores": []}


def test_it_comes_back_from_its_description():
    task = make_task([0.1, 0.2, 0.3])
    assert bind_described(task.describe() | {"max_length": 64}).describe() == task.describe()


def test_the_loss_is_torchs_mean_over_labels():
    logits, labels = drawn(2)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert BinaryCrossEntropy()(logits, labels).mean().item() == pytest.approx(expected.item(), rel=1e-6)
    weighted = BinaryCrossEntropy(label_weights=[1.0, 2.0, 5.0])(logits, labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels, pos_weight=torch.tensor([1.0, 2.0, 5.0])
    )
    assert weighted.mean().item() == pytest.approx(expected.item(), rel=1e-6)


def splits(train: list[list[str]], test: list[list[str]]) -> dict[str, pa.Table]:
    def table(name: str, rows: list[list[str]]) -> pa.Table:
        column = pa.array(rows, pa.list_(pa.string()))
        return pa.table({"labels": column, "where": [f"{name}.jsonl:{i}" for i in range(1, len(rows) + 1)]})

    return {name: table(name, test if name == "test" else train) for name in ("train", "validation", "test")}


def test_labels_are_those_of_train():
    task = MultiLabel.from_rows(splits([["b"], [], ["a", "b"]], [[]]), {"pooling": "last", "init": "he", "window": 64})
    assert task.labels == ["a", "b"]


def test_labels_that_train_does_not_have_are_named_with_their_places():
    with pytest.raises(DataError) as raised:
        all_labels_of(splits([["spam"]], [["span"], ["spam"], ["x", "spam"]]))
    assert str(raised.value).splitlines() == [
        "test.jsonl:1: test has the label 'span', which train has not; did you mean 'spam'?",
        "test.jsonl:3: test has the label 'x', which train has not; known here: spam",
    ]


def test_no_label_at_all_is_an_error():
    with pytest.raises(DataError, match="no training row has a label"):
        all_labels_of(splits([[], []], [[]]))


def test_a_pipeline_gives_the_same_probabilities(tiny_tokenizer, tiny_backbone, tmp_path):
    from transformers import pipeline

    from permafrost.deployment.export import export_model
    from permafrost.deployment.predictor import Predictor
    from permafrost.model.freezing import Freezing
    from permafrost.model.gpt2 import GPT2WithHead

    task = make_task([0.0, 0.0, 0.0])
    model = GPT2WithHead(tiny_backbone, task.build_head(tiny_backbone), Freezing(embeddings=False, blocks=0)).eval()
    export_model(model, task, Encoding(tokenizer=tiny_tokenizer, max_length=32), tmp_path, "card")
    theirs = pipeline("text-classification", model=str(tmp_path), top_k=None)(["a warm day", "rain"])
    for answer, scores in zip(Predictor(tmp_path).predict(["a warm day", "rain"]), theirs, strict=True):
        expected = {score["label"]: score["score"] for score in scores}
        assert dict(zip(answer["labels"], answer["scores"], strict=True)) == pytest.approx(expected, abs=1e-6)
