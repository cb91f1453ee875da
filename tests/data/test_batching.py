"""Batches are a function of lengths, seed and epoch; nothing is lost, little padded, every target weighs the same."""

import numpy as np
import pytest
import torch

from permafrost.data.tokens.batching import (
    PlannedBatch,
    PlannedBatches,
    RowBatching,
    TokenBatching,
    at_least,
    loss_scales,
    ordered_batches,
    pad_right,
    padded_batch,
    padding_share,
    shuffled_batches,
)
from permafrost.data.tokens.tokenization import TokenizedSplit
from permafrost.errors import DataError
from permafrost.storage.ragged import RaggedArray

LENGTHS = np.clip(np.random.default_rng(0).lognormal(3.4, 0.6, 20_000), 1, 512).astype(np.int64)
BUDGET = TokenBatching(max_tokens=4096)


def epoch(number: int, batching=BUDGET, seed: int = 0):
    return shuffled_batches(LENGTHS, batching, seed=seed, epoch=number)


@pytest.mark.parametrize("batching", [BUDGET, RowBatching(batch_size=32)])
def test_every_row_stands_in_an_epoch_once(batching):
    assert np.array_equal(np.sort(np.concatenate(epoch(0, batching))), np.arange(len(LENGTHS)))


def test_no_batch_exceeds_the_budget_with_its_padding():
    assert max(len(rows) * LENGTHS[rows].max() for rows in epoch(0)) <= 4096


def test_a_row_longer_than_the_budget_stands_alone():
    batches = ordered_batches(np.array([3, 50, 2]), TokenBatching(max_tokens=10))
    assert [rows.tolist() for rows in batches] == [[1], [2, 0]]


def test_order_is_a_function_of_seed_and_epoch():
    same, other_epoch, other_seed = epoch(1), epoch(2), epoch(1, seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(epoch(1), same, strict=True))
    assert not np.array_equal(np.concatenate(same), np.concatenate(other_epoch))
    assert not np.array_equal(np.concatenate(same), np.concatenate(other_seed))


def test_padding_is_below_three_percent():
    assert padding_share(epoch(0), LENGTHS) < 0.03


def test_long_batches_do_not_come_in_a_row():
    means = [LENGTHS[rows].mean() for rows in epoch(0)]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_evaluation_begins_with_the_longest_rows():
    batches = ordered_batches(LENGTHS, BUDGET)
    assert LENGTHS[batches[0]].max() == LENGTHS.max()
    assert sum(len(rows) for rows in batches) == len(LENGTHS)


@pytest.mark.parametrize(("accumulate", "world_size"), [(1, 1), (4, 1), (3, 2), (10_000, 1)])
def test_scaled_sums_give_the_mean_over_the_steps_targets(accumulate, world_size):
    """The trainer divides by `accumulate` and averages over processes; what is left is the plain mean."""
    rng = np.random.default_rng(0)
    targets = rng.integers(1, 20, 40)
    batches = np.array_split(rng.permutation(40), 11)
    losses = rng.random(40)
    scales = loss_scales(np.array([targets[rows].sum() for rows in batches]), accumulate, world_size)
    for start in range(0, len(batches), accumulate):
        step = range(start, min(start + accumulate, len(batches)))
        made = sum((losses[batches[i]] * targets[batches[i]]).sum() * scales[i] for i in step) / accumulate / world_size
        rows = np.concatenate([batches[i] for i in step])
        assert made == pytest.approx((losses[rows] * targets[rows]).sum() / targets[rows].sum())


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_processes_share_the_same_global_batches(world_size):
    planned = [PlannedBatch(rows, 1.0) for rows in epoch(0)[:50]]
    shares = [list(PlannedBatches(planned, rank=rank, world_size=world_size)) for rank in range(world_size)]
    for number, batch in enumerate(planned):
        together = np.concatenate([share[number].rows for share in shares if share[number].loss_scale])
        assert sorted(together) == sorted(batch.rows)


def test_a_process_without_rows_takes_part_at_no_weight():
    (share,) = PlannedBatches([PlannedBatch(np.array([7]), 2.0)], rank=1, world_size=2)
    assert share.rows.tolist() == [7]
    assert share.loss_scale == 0


def test_a_resumed_epoch_has_its_rest_and_its_whole_length():
    planned = [PlannedBatch(rows, 1.0) for rows in epoch(0)[:10]]
    resumed = PlannedBatches(planned, start=7)
    assert [batch.rows.tolist() for batch in resumed] == [batch.rows.tolist() for batch in planned[7:]]
    assert len(resumed) == 10


TOKENS = RaggedArray(np.array([5, 6, 7, 8, 9], np.int32), np.array([0, 2, 5]))


def split_with(labels: np.ndarray | RaggedArray | None, source_rows: np.ndarray | None = None) -> TokenizedSplit:
    targets = np.array([1, 3], np.int32)
    return TokenizedSplit(input_ids=TOKENS, num_targets=targets, labels=labels, source_rows=source_rows)


def test_a_padded_batch_by_hand():
    batch = padded_batch(split_with(np.array([4, 2])), np.array([0, 1]), 0.5)
    assert batch.input_ids.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert batch.lengths.tolist() == [2, 3]
    assert batch.labels.tolist() == [4, 2]
    assert batch.row_ids.tolist() == batch.source_rows.tolist() == [0, 1]
    assert int(batch.num_targets) == 4
    assert float(batch.loss_scale) == 0.5


def test_labels_of_tokens_are_padded_by_what_no_loss_reads():
    labels = RaggedArray(np.array([-100, 3, 1, -100, 2], np.int32), TOKENS.offsets)
    assert padded_batch(split_with(labels), np.array([1, 0])).labels.tolist() == [[1, -100, 2], [-100, 3, -100]]


def test_several_labels_a_row_stay_together():
    labels = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert padded_batch(split_with(labels), np.array([1])).labels.tolist() == [[0.0, 1.0]]


def test_windows_say_which_row_they_are_of():
    assert padded_batch(split_with(None, np.array([8, 8])), np.array([1, 0])).source_rows.tolist() == [8, 8]


def test_without_labels_the_tokens_are_the_labels_and_padding_is_none():
    assert padded_batch(split_with(None), np.array([0, 1])).labels.tolist() == [[5, 6, -100], [7, 8, 9]]


def test_pad_right():
    assert torch.equal(pad_right([np.array([1]), np.array([2, 3])], fill=-1), torch.tensor([[1, -1], [2, 3]]))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_resumed_process_goes_on_with_its_own_share(rank):
    planned = [PlannedBatch(rows, 1.0) for rows in epoch(0)[:10]]
    whole = [batch.rows.tolist() for batch in PlannedBatches(planned, rank=rank, world_size=2)]
    rest = [batch.rows.tolist() for batch in PlannedBatches(planned, start=4, rank=rank, world_size=2)]
    assert rest == whole[4:]


@pytest.mark.parametrize("batching", [BUDGET, RowBatching(batch_size=32)])
def test_no_rows_make_no_batches(batching):
    none = np.array([], np.int64)
    assert shuffled_batches(none, batching, seed=0, epoch=0) == ordered_batches(none, batching) == []
    assert padding_share([], none) == 0


def test_padding_share_by_hand():
    """3 + 1 tokens stand in 2 x 3 places, 2 + 2 in 2 x 2: 2 of 10 are padding."""
    assert padding_share([np.array([0, 1]), np.array([2, 3])], np.array([3, 1, 2, 2])) == pytest.approx(0.2)


def test_a_step_without_targets_has_a_finite_scale():
    scales = loss_scales(np.array([0, 5]), accumulate=1, world_size=1)
    assert scales.tolist() == [1, 0.2]


def test_accumulated_gradients_are_those_of_all_rows_at_once():
    """d/dw (wx - y)^2 = -2xy at w = 0: a window of two unequal batches, then a partial one of a single batch."""
    x, y = np.array([1.0, 2.0, 3.0, 5.0]), np.array([2.0, 0.0, 1.0, 4.0])
    batches = [np.array([0, 1]), np.array([2]), np.array([3])]
    scales = loss_scales(np.array([2, 1, 1]), accumulate=2, world_size=1)
    parts = [(-2 * x[rows] * y[rows]).sum() * scale / 2 for rows, scale in zip(batches, scales, strict=True)]
    assert parts[0] + parts[1] == pytest.approx((-4 + 0 - 6) / 3)
    assert parts[2] == pytest.approx(-40)


@pytest.mark.parametrize("processes", [1, 2, 4, 7])
def test_there_is_a_batch_for_each_process_and_every_row_once(processes):
    batches = [PlannedBatch(np.arange(5), 1.0), PlannedBatch(np.arange(5, 7), 1.0)]
    cut = at_least(processes, batches)
    assert len(cut) == max(2, processes)
    assert sorted(row for batch in cut for row in batch.rows.tolist()) == list(range(7))
    assert {batch.loss_scale for batch in cut} == {1.0}


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(DataError, match="a split of 3 rows is too small for 4 processes"):
        at_least(4, [PlannedBatch(np.arange(3), 1.0)])
