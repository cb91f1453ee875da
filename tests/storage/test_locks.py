"""A directory is one process's at a time, and free when that has ended, however it ended."""

import json
import os

import pytest

from permafrost.errors import ConfigError, ResourceError
from permafrost.storage.locks import sole_run
from tests.processes import holding


def test_45_a_second_run_is_told_who_has_the_directory(tmp_path):
    with holding(tmp_path / "run") as another:
        told = rf"at work: process {another.pid} on {os.uname().nodename}; wait for it, or set another hydra\.run\.dir"
        with pytest.raises(ConfigError, match=told), sole_run(tmp_path / "run"):
            pass


def test_45_the_lock_of_a_killed_process_is_free(tmp_path):
    with holding(tmp_path / "run") as another:
        another.kill()
        another.wait()
    assert (tmp_path / "run" / ".running.json").exists()
    with sole_run(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".running.json").read_text())["process"] == os.getpid()
    assert list((tmp_path / "run").iterdir()) == []


def test_also_within_one_process(tmp_path):
    with sole_run(tmp_path), pytest.raises(ConfigError, match="another run's"), sole_run(tmp_path):
        pass


def test_a_failed_run_leaves_no_lock(tmp_path):
    with pytest.raises(ValueError), sole_run(tmp_path):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot write to the run directory"), sole_run(tmp_path / "file" / "run"):
        pass
