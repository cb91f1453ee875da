"""Overlapping windows: every token is scored exactly once, with the context that is promised."""

import pytest

from permafrost.data.tokens.windows import Window, windows


def test_a_row_that_fits_is_one_window():
    assert windows(8, 8) == [Window(0, 8, 0, 8)]
    assert windows(1, 8) == [Window(0, 1, 0, 1)]


def test_an_empty_row_is_one_empty_window():
    assert windows(0, 8) == [Window(0, 0, 0, 0)]


def test_windows_written_out():
    assert windows(14, 8) == [Window(0, 8, 0, 8), Window(4, 12, 8, 12), Window(8, 14, 12, 14)]
    assert windows(14, 8, right_context=2) == [
        Window(0, 8, 0, 6),
        Window(4, 12, 6, 10),
        Window(8, 14, 10, 14),
    ]


@pytest.mark.parametrize("right_context", [0, 1, 3])
@pytest.mark.parametrize("limit", [8, 9, 64])
def test_every_token_is_scored_once_and_sees_its_context(limit, right_context):
    for length in range(1, 300):
        found = windows(length, limit, right_context=right_context)
        scored = [token for window in found for token in range(window.scored_from, window.scored_to)]
        assert scored == list(range(length))
        for number, window in enumerate(found):
            assert 0 <= window.start <= window.scored_from < window.scored_to <= window.end <= length
            assert window.end - window.start <= limit
            if number:
                assert window.scored_from - window.start >= limit // 2 - right_context
            if number < len(found) - 1:
                assert window.end - window.scored_to == right_context


def test_a_little_context_takes_few_windows():
    assert windows(20, 8, left_context=1) == [Window(0, 8, 0, 8), Window(7, 15, 8, 15), Window(14, 20, 15, 20)]
    assert windows(16, 8, left_context=0) == [Window(0, 8, 0, 8), Window(8, 16, 8, 16)]


def test_a_context_that_leaves_nothing_is_an_error():
    with pytest.raises(ValueError, match="leave a window of 8"):
        windows(20, 8, right_context=9)
