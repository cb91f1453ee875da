"""Classes of unequal size: scikit-learn's balanced weights, and rows that stand in an epoch as often as they weigh."""

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from permafrost.data.tokens.batching import RowBatching, shuffled_batches
from permafrost.data.tokens.mixing import mixed_batches
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.data.transforms.balance import class_weights, drawn_rows, row_weights
from permafrost.errors import ConfigError
from permafrost.storage.ragged import RaggedArray

LABELS = np.array([0] * 6 + [1] * 3 + [2])


def split_of(labels, source_rows=None) -> TokenizedSplit:
    count = len(labels)
    ids = RaggedArray(np.zeros(count, np.int32), np.arange(count + 1))
    return TokenizedSplit(input_ids=ids, num_targets=np.ones(count), labels=labels, source_rows=source_rows)


def test_class_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    assert class_weights(split_of(LABELS), 3).tolist() == pytest.approx(expected.tolist())


def test_a_target_weighs_one_on_average():
    assert class_weights(split_of(LABELS), 3)[LABELS].mean() == pytest.approx(1)


def test_class_weights_of_words_leave_out_what_is_not_scored():
    words = RaggedArray(np.array([0, -100, 0, 0, 1], np.int32), np.array([0, 2, 5]))
    assert class_weights(split_of(words), 2).tolist() == pytest.approx([4 / 6, 2])


def test_weights_of_several_labels_a_row_are_rows_without_for_each_with():
    assert class_weights(split_of(np.array([[1, 0], [1, 1], [1, 0], [0, 0]], np.float32)), 2).tolist() == pytest.approx(
        [1 / 3, 3]
    )


def test_numbers_have_no_classes():
    with pytest.raises(ConfigError, match=r"data.balance is for tasks with labels"):
        class_weights(split_of(np.array([0.5, 1.5])), 2)
    with pytest.raises(ConfigError, match=r"data.balance=sampling is for rows with one label each"):
        row_weights(split_of(np.array([0.5, 1.5])), "sampling", None)


def test_sampling_evens_out_the_classes():
    weights = row_weights(split_of(LABELS), "sampling", None)
    counts = sum(np.bincount(LABELS[drawn_rows(weights, seed=0, epoch=epoch)], minlength=3) for epoch in range(600))
    assert counts / 600 == pytest.approx([10 / 3] * 3, abs=0.15)  # the largest standard error is 0.04


def test_an_epoch_has_a_row_as_often_as_it_weighs_to_one():
    rows = drawn_rows(np.array([0.0, 1.0, 2.0, 2.5]), seed=3, epoch=1)
    assert np.bincount(rows, minlength=4).tolist() in ([0, 1, 2, 2], [0, 1, 2, 3])
    assert drawn_rows(np.array([0.0, 0.0]), seed=0, epoch=0).tolist() == [0]


def test_quality_is_of_the_source_row():
    split = split_of(np.array([0, 0, 1]), source_rows=np.array([0, 0, 1]))
    assert row_weights(split, "none", np.array([0.25, 1.0])).tolist() == [0.25, 0.25, 1.0]
    assert row_weights(split, "none", np.ones(2)) is None


def test_texts_that_are_joined_have_no_weights():
    with pytest.raises(ConfigError, match="joined end to end"):
        row_weights(split_of(np.array([0, 0, 1])), "none", np.array([0.5, 1.0]))
    assert row_weights(split_of(np.array([0, 0, 1])), "none", np.ones(2)) is None


def test_batches_hold_what_is_drawn_and_differ_by_epoch_alone():
    lengths, weights = np.arange(1, 11), np.array([2.0] * 5 + [0.5] * 5)
    how = {"batching": RowBatching(batch_size=3), "seed": 1}
    batches = shuffled_batches(lengths, **how, epoch=0, weights=weights)
    assert sorted(np.concatenate(batches)) == sorted(drawn_rows(weights, seed=1, epoch=0))
    mixed = mixed_batches({"": lengths}, how["batching"], temperature=1, seed=1, epoch=0, weights={"": weights})
    assert [rows.tolist() for _, rows in mixed] == [rows.tolist() for rows in batches]
    again = shuffled_batches(lengths, **how, epoch=1, weights=weights)
    assert sorted(np.concatenate(again)) != sorted(np.concatenate(batches))
