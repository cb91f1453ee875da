"""Several parts in one epoch: shares by temperature, and no row of a part twice before all were seen."""

from collections import Counter

import numpy as np
import pytest

from permafrost.data.tokens.batching import TokenBatching, shuffled_batches
from permafrost.data.tokens.mixing import batches_per_epoch, mixed_batches

BUDGET = TokenBatching(max_tokens=40)
LENGTHS = {"large": np.full(80, 10), "small": np.full(20, 10)}  # 20 and 5 batches


def epoch(number: int, temperature: float = 1.0, lengths=LENGTHS) -> list[tuple[str, np.ndarray]]:
    return mixed_batches(lengths, BUDGET, temperature=temperature, seed=3, epoch=number)


@pytest.mark.parametrize(
    ("temperature", "expected"), [(1.0, [20, 5]), (2.0, [17, 8]), (3.0, [15, 10]), (0.5, [24, 1]), (0.1, [25, 1])]
)
def test_shares_by_hand(temperature, expected):
    """20 and 5 of 25; at temperature 2 sqrt(20) to sqrt(5), at 3 2.71 to 1.71, at 1/2 400 to 25; one at least."""
    assert batches_per_epoch([20, 5], temperature) == expected


def test_at_temperature_one_each_row_comes_once():
    seen = Counter((part, row) for part, rows in epoch(0) for row in rows.tolist())
    assert seen == Counter({(part, row): 1 for part, lengths in LENGTHS.items() for row in range(len(lengths))})


def test_parts_are_mixed_through_the_epoch_and_in_another_order_each_time():
    orders = [[part for part, _ in epoch(number)] for number in range(2)]
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_a_part_that_is_cut_goes_on_where_it_stopped():
    """At a high temperature the large part has 13 of its 20 batches an epoch, so all in two."""
    taken = [rows for number in range(2) for part, rows in epoch(number, 1e9) if part == "large"]
    counts = Counter(np.concatenate(taken).tolist())
    assert len(counts) == 80  # every row of the first pass, and six batches of the second
    assert max(counts.values()) == 2


def test_one_part_alone_is_shuffled_as_ever():
    alone = epoch(4, lengths={"": LENGTHS["large"]})
    expected = shuffled_batches(LENGTHS["large"], BUDGET, seed=3, epoch=4)
    assert [part for part, _ in alone] == [""] * 20
    assert all(np.array_equal(rows, other) for (_, rows), other in zip(alone, expected, strict=True))


def test_an_epoch_is_a_function_of_seed_and_number():
    for (part, rows), (other_part, other) in zip(epoch(2), epoch(2), strict=True):
        assert part == other_part
        assert np.array_equal(rows, other)
