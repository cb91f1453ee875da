"""A sealed file is read whole or not at all: what is cut off or changed is found. A failed write changes nothing."""

import errno
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from permafrost.errors import DataError, ResourceError
from permafrost.training import sealed
from permafrost.training.checkpoints import check_room, newest_good, shift
from permafrost.training.sealed import MARK, fault_of, peek, read_sealed, write_sealed

CONTENT = {"weights": torch.arange(6000, dtype=torch.float32), "step": 7}


@pytest.fixture
def path(tmp_path) -> Path:
    write_sealed(CONTENT, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_what_was_written_is_read(path):
    assert fault_of(path) is None
    for read in (read_sealed, peek):
        found = read(path)
        assert torch.equal(found["weights"], CONTENT["weights"])
        assert found["step"] == 7


def test_plain_torch_reads_it(path):
    assert torch.equal(torch.load(path, weights_only=True)["weights"], CONTENT["weights"])


def test_the_checksum_is_sha256_of_what_stands_before_it(path):
    import subprocess

    size = path.stat().st_size - len(MARK) - 64
    done = subprocess.run(f"head -c {size} {path} | sha256sum", shell=True, capture_output=True, text=True, check=True)
    assert path.read_bytes()[size:] == MARK + done.stdout.split()[0].encode()


def lengths(size: int) -> list[int]:
    return sorted({0, 1, size // 2, size - 1, *range(4096, size, 4096)})


def test_8_every_truncation_is_found(path):
    whole = path.read_bytes()
    assert len(lengths(len(whole))) > 8
    for length in lengths(len(whole)):
        path.write_bytes(whole[:length])
        assert fault_of(path), length


def test_9_every_single_bit_flip_is_found(path):
    whole, rng = bytearray(path.read_bytes()), random.Random(0)
    ends = [0, 7, 8 * len(whole) - 1, 8 * (len(whole) - 64) - 1]
    for bit in [*ends, *rng.sample(range(8 * len(whole)), 200)]:
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        assert fault_of(path), bit


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 1000], ids=len)
def test_11_another_programs_file_has_no_seal(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.ckpt is damaged: it (is cut off|has no checksum)"):
        read_sealed(path)


def test_11_a_seal_of_another_version_is_none(path):
    path.write_bytes(path.read_bytes().replace(MARK, MARK.replace(b" 1 ", b" 2 ")))
    assert "of another program" in str(fault_of(path))


def test_a_file_that_is_not_there(tmp_path):
    assert fault_of(tmp_path / "none") == "No such file or directory"


class FullDisk:
    """Fails as a full disk does, once so many bytes were written."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, content) -> int:
        self.room -= len(content)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


@pytest.mark.parametrize("room", [0, 1000, 20_000, 24_500])
def test_6_a_full_disk_leaves_the_old_file(path, monkeypatch, room):
    save, old = sealed._save, path.read_bytes()
    monkeypatch.setattr(sealed, "_save", lambda content, file: save(content, FullDisk(file, room)))
    with pytest.raises(
        ResourceError, match=r"cannot write .*a\.ckpt: No space left .* MB are free\); a\.ckpt is as it"
    ):
        write_sealed({"weights": torch.zeros(6000)}, path)
    assert path.read_bytes() == old
    assert [name.name for name in path.parent.iterdir()] == ["a.ckpt"]


def test_a_disk_that_fails_to_keep_leaves_the_old_file(path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    old = path.read_bytes()
    monkeypatch.setattr(sealed, "flush_to_disk", fail)
    with pytest.raises(ResourceError, match="Input/output error"):
        write_sealed({"weights": torch.zeros(1)}, path)
    assert path.read_bytes() == old


def test_7_a_read_only_directory_is_told_of(tmp_path, monkeypatch):
    def refuse(self, *_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # file modes do not bind root
    with pytest.raises(ResourceError, match="Permission denied"):
        write_sealed(CONTENT, tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("temporary", [None, "/dev/shm"])
def test_5_it_is_written_beside_its_place_wherever_temporary_files_are(path, monkeypatch, temporary):
    """Another file system has no part in it: what is renamed lies where it stays."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", temporary or str(path.parent / "nowhere"))
    write_sealed(CONTENT, path)
    assert fault_of(path) is None


# Several checkpoints of a run


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """With a last and a previous checkpoint."""
    for step in (1, 2):
        write_sealed({"step": step}, tmp_path / "checkpoints" / "next.ckpt")
        shift(tmp_path / "checkpoints")
    return tmp_path


def steps(run_dir: Path) -> dict[str, int]:
    return {path.name: read_sealed(path)["step"] for path in (run_dir / "checkpoints").iterdir()}


def test_the_two_newest_are_kept(run_dir):
    assert steps(run_dir) == {"last.ckpt": 2, "previous.ckpt": 1}
    write_sealed({"step": 3}, run_dir / "checkpoints" / "next.ckpt")
    shift(run_dir / "checkpoints")
    assert steps(run_dir) == {"last.ckpt": 3, "previous.ckpt": 2}


def test_the_newest_is_gone_on_from(run_dir):
    assert newest_good(run_dir) == (run_dir / "checkpoints" / "last.ckpt", [])


def test_3_a_process_killed_before_the_renames_leaves_the_newest(run_dir):
    write_sealed({"step": 3}, run_dir / "checkpoints" / "next.ckpt")
    assert newest_good(run_dir)[0] == run_dir / "checkpoints" / "next.ckpt"


def test_3_a_process_killed_between_the_renames_leaves_the_newest(run_dir):
    write_sealed({"step": 3}, run_dir / "checkpoints" / "next.ckpt")
    (run_dir / "checkpoints" / "last.ckpt").replace(run_dir / "checkpoints" / "previous.ckpt")
    assert newest_good(run_dir)[0] == run_dir / "checkpoints" / "next.ckpt"


def test_8_a_damaged_one_gives_way_to_the_one_before(run_dir):
    (run_dir / "checkpoints" / "last.ckpt").write_bytes(b"half")
    found, damaged = newest_good(run_dir)
    assert found == run_dir / "checkpoints" / "previous.ckpt"
    assert damaged == [f"{run_dir}/checkpoints/last.ckpt is damaged: it is cut off"]


def test_10_where_all_are_damaged_each_is_named(run_dir):
    for name in ("last", "previous"):
        (run_dir / "checkpoints" / f"{name}.ckpt").write_bytes(b"half")
    with pytest.raises(
        DataError, match=r"(?s)no checkpoint is whole.*last\.ckpt is damaged.*previous\.ckpt is damaged"
    ):
        newest_good(run_dir)


WEIGHTS = torch.nn.Linear(1000, 100, bias=False)  # 400 kB, so that a checkpoint has 1.2 MB


@pytest.mark.parametrize(("free", "fits"), [(3_600_000, True), (3_599_999, False)])
def test_7_room_for_three_checkpoints_is_asked_for_beforehand(tmp_path, monkeypatch, free, fits):
    """The two that are kept, and the one that is being written."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if fits:
        check_room(tmp_path / "checkpoints", WEIGHTS)
    else:
        with pytest.raises(ResourceError, match=r"checkpoints need 3 MB in .*, and 3 are free; .*callbacks\.last=null"):
            check_room(tmp_path / "checkpoints", WEIGHTS)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_those_that_are_there_need_no_more(run_dir, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_200_000))
    check_room(run_dir / "checkpoints", WEIGHTS)


def test_7_a_directory_that_may_not_be_written_is_told_of_beforehand(tmp_path, monkeypatch):
    def refuse(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(ResourceError, match=r"cannot write .*checkpoints: Permission denied"):
        check_room(tmp_path / "checkpoints", WEIGHTS)


def test_where_there_is_none_there_is_none(tmp_path):
    assert newest_good(tmp_path) == (None, [])


def test_a_file_may_be_named_itself(run_dir):
    path = run_dir / "checkpoints" / "previous.ckpt"
    assert newest_good(path) == (path, [])
