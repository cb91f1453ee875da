"""Hashes that are the same everywhere."""

import pytest

from permafrost.data.files.splits import split_of, unit_hash


def test_unit_hash_is_pinned():
    """A changed hash would silently move rows between train and test."""
    assert round(unit_hash("a text", 0), 6) == 0.611385
    assert unit_hash("a text", 0) != unit_hash("a text", 1)


def test_unit_hash_is_uniform():
    values = [unit_hash(str(i), 0) for i in range(4000)]
    assert min(values) >= 0
    assert max(values) < 1
    assert abs(sum(values) / 4000 - 0.5) < 0.02  # 4 standard errors


def test_test_rows_stay_test_rows_when_validation_grows():
    for i in range(200):
        if split_of(str(i), 0, 0.1, 0.2) == "test":
            assert split_of(str(i), 0, 0.4, 0.2) == "test"


def test_lone_surrogates_do_not_stop_it():
    assert 0 <= unit_hash("\udce9", 0) < 1


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.1), (0.3, 0.05), (0.0, 0.5), (0.0, 0.0)])
def test_fractions_are_about_those_asked_for(validation, test):
    places = [split_of(f"row {i}", 3, validation, test) for i in range(4000)]
    # 0.032 is 4 standard deviations of a share of one half in 4,000 rows, more of the others
    assert abs(places.count("validation") / 4000 - validation) <= 0.032 * (validation > 0)
    assert abs(places.count("test") / 4000 - test) <= 0.032 * (test > 0)
