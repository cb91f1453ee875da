"""Labels that were turned over are ranked before the others; what is done with them is as asked."""

import csv
import random
import re

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from permafrost.data.fields.by_role import Notes
from permafrost.data.quality.wrong_labels import judged, label_quality
from permafrost.data.rows import keep
from permafrost.errors import ConfigError

WARM, COLD = ["sunny", "hot", "warm", "bright", "dry"], ["snow", "cold", "frost", "ice", "wet"]


def planted(count: int = 200, share: float = 0.05) -> tuple[list[str], list[str], np.ndarray]:
    """Texts of warm or cold words, their labels, and which of these were turned over."""
    rng = random.Random(0)
    true = [number % 2 for number in range(count)]
    texts = [" ".join(rng.choices(WARM if label else COLD, k=6)) for label in true]
    wrong = np.zeros(count, bool)
    wrong[rng.sample(range(count), int(count * share))] = True
    return texts, [str(label ^ bool(turned)) for label, turned in zip(true, wrong, strict=True)], wrong


@pytest.fixture
def splits(tmp_path):
    texts, labels, _ = planted()
    table = pa.table({"where": [f"f:{i}" for i in range(len(texts))], "text": texts, "label": labels})
    return {"train": keep([table], tmp_path)}


def test_planted_labels_are_found():
    texts, labels, wrong = planted()
    quality, found, suggested = label_quality(texts, labels)
    assert roc_auc_score(wrong, -quality) >= 0.99
    assert found[wrong].mean() >= 0.9
    assert found[~wrong].mean() <= 0.02
    assert all(suggested[row] != labels[row] for row in np.flatnonzero(found & wrong))


def test_they_are_told_and_kept(splits, tmp_path):
    notes = Notes()
    assert judged(splits, "report", notes, tmp_path) is not None
    assert notes.log.counts["W404"] == 10
    assert notes.log.first["W404"][0].where == f"f:{np.flatnonzero(planted()[2])[0]}"
    assert notes.row_quality is None
    assert "cleaning.wrong_labels=drop leaves such rows out" in notes.log.first["W404"][0].fix


def test_they_are_dropped(splits, tmp_path):
    notes = Notes()
    left = judged(splits, "drop", notes, tmp_path)["train"]
    assert notes.log.first["W404"][0].fix == "it is left out of train"
    assert left.num_rows == 190
    assert set(left["where"].to_pylist()) == {f"f:{row}" for row in np.flatnonzero(~planted()[2])}


def test_they_weigh_less(splits, tmp_path):
    notes = Notes()
    judged(splits, "weigh", notes, tmp_path)
    assert (notes.row_quality[~planted()[2]] == 1).all()
    assert (notes.row_quality[planted()[2]] < 0.5).all()
    assert re.fullmatch(r"it weighs 0\.\d\d of a row", notes.log.first["W404"][0].fix)


def test_rows_without_one_label_each_are_refused(tmp_path):
    train = keep([pa.table({"where": ["f:1"], "text": ["x"], "target": [1.0]})], tmp_path)
    with pytest.raises(ConfigError, match=r"cleaning.wrong_labels=report is for rows with one label each"):
        judged({"train": train}, "report", Notes(), tmp_path)


def test_a_class_of_one_row_is_refused():
    with pytest.raises(ConfigError, match="two rows of each label at least, and 'y' has one"):
        label_quality(["a b", "a c", "b c"], ["x", "x", "y"])


@pytest.mark.slow
def test_33_five_percent_of_sst2_turned_over(shared):
    """0.86 measured: of the sentences as they are, such a model is right about 78 %, which bounds the ranking."""
    with (shared / "data" / "sst2" / "train.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rng, labels = random.Random(0), [int(row["label"]) for row in rows]
    wrong = np.zeros(len(rows), bool)
    wrong[rng.sample(range(len(rows)), len(rows) // 20)] = True
    given = [str(label ^ bool(turned)) for label, turned in zip(labels, wrong, strict=True)]
    quality, found, _ = label_quality([row["sentence"] for row in rows], given)
    auroc, precision = roc_auc_score(wrong, -quality), wrong[found].mean()
    print(f"AUROC {auroc:.3f}, precision {precision:.3f}, recall {found[wrong].mean():.3f}")
    assert auroc >= 0.85
