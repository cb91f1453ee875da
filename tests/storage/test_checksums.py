"""A file of weights of which any bit has changed is named, and not read."""

import hashlib
import json

import pytest

from permafrost.errors import ResourceError
from permafrost.storage.checksums import SUMS, check_files, write_checksums


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 8192)  # two chunks
    (tmp_path / "config.json").write_text("{}")
    write_checksums(tmp_path)
    return tmp_path


def test_the_sums_are_those_of_the_weights_alone(directory):
    expected = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((directory / SUMS).read_text()) == {"model.safetensors": expected}
    check_files(directory)
    (directory / "config.json").write_text('{"a": 1}')  # a person's to edit
    check_files(directory)


@pytest.mark.parametrize("position", [0, 1_234_567, -1])
def test_one_flipped_bit_is_found(directory, position):
    content = bytearray((directory / "model.safetensors").read_bytes())
    content[position] ^= 1
    (directory / "model.safetensors").write_bytes(content)
    with pytest.raises(ResourceError, match=r"model\.safetensors is damaged"):
        check_files(directory)


def test_a_missing_file_is_found(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(ResourceError, match=r"model\.safetensors is missing"):
        check_files(directory)


def test_where_there_are_no_sums_nothing_is_known(tmp_path):
    check_files(tmp_path)
