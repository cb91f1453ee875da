"""Rows of unequal length: the same in memory and in a file, in any process, and little of the file is resident."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from permafrost.storage.ragged import RaggedArray

LENGTHS = [3, 1, 0, 5]
OFFSETS = np.cumsum([0, *LENGTHS])
VALUES = np.arange(18, dtype=np.float32).reshape(9, 2)


@pytest.fixture(params=["in memory", "in a file"])
def array(request, tmp_path) -> RaggedArray:
    if request.param == "in memory":
        return RaggedArray(VALUES, OFFSETS)
    VALUES.tofile(tmp_path / "values.bin")
    return RaggedArray.in_file(tmp_path / "values.bin", OFFSETS, np.float32, 2)


def check(array: RaggedArray) -> None:
    assert len(array) == 4
    assert array.lengths.tolist() == LENGTHS
    for row, (start, length) in enumerate(zip(OFFSETS, LENGTHS, strict=False)):
        np.testing.assert_array_equal(array[row], VALUES[start : start + length])


def test_rows_are_what_was_put_end_to_end(array):
    check(array)


def test_a_pickled_one_reads_the_same(array):
    check(pickle.loads(pickle.dumps(array)))


def test_one_in_a_file_is_pickled_without_its_values(tmp_path):
    np.zeros(100_000, np.int32).tofile(tmp_path / "values.bin")
    array = RaggedArray.in_file(tmp_path / "values.bin", np.array([0, 100_000]), np.int32)
    assert len(pickle.dumps(array)) < 2000
    assert pickle.loads(pickle.dumps(array))[0].shape == (100_000,)


def test_a_file_that_was_removed_is_read_on(tmp_path):
    VALUES.tofile(tmp_path / "values.bin")
    array = RaggedArray.in_file(tmp_path / "values.bin", OFFSETS, np.float32, 2)
    (tmp_path / "values.bin").unlink()
    check(array)


def test_a_file_that_is_too_short_is_an_error(tmp_path):
    VALUES[:8].tofile(tmp_path / "values.bin")
    with pytest.raises(EOFError, match="ends before row 3"):
        RaggedArray.in_file(tmp_path / "values.bin", OFFSETS, np.float32, 2)[3]


def test_an_empty_file_has_empty_rows(tmp_path):
    (tmp_path / "values.bin").touch()
    assert RaggedArray.in_file(tmp_path / "values.bin", np.array([0, 0]), np.int32)[0].tolist() == []


RESIDENT = """
import sys
from pathlib import Path

import numpy as np
from permafrost.storage.ragged import RaggedArray

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

rows, length = 40_000, 4096  # 625 MiB
with open(sys.argv[1], "wb") as file:
    for _ in range(rows // 1000):
        file.write(np.ones(1000 * length, np.int32).data)
array = RaggedArray.in_file(Path(sys.argv[1]), np.arange(rows + 1) * length, np.int32)
before, most = resident_mb(), 0
for row in np.random.default_rng(0).permutation(rows):
    assert array[row].sum() == length
    if row % 100 == 0:
        most = max(most, resident_mb())
print(most - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_all_rows_keeps_little_of_the_file_resident(tmp_path):
    ran = subprocess.run([sys.executable, "-c", RESIDENT, str(tmp_path / "v")], capture_output=True, text=True)
    assert float(ran.stdout) < 20, ran.stderr  # of 625
