"""A file is there whole or not at all, whatever goes wrong while it is written."""

import errno
import os
from pathlib import Path

import pytest
import torch

from runs.atomic_files import full_disk_in_words, write_atomically
from runs.errors import InputError


def test_the_new_content_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on" / "the" / "way" / "result.json"
    for content in (b"first", b"second, longer"):
        write_atomically(path, lambda stream, content=content: stream.write(content))
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")

    def half(stream) -> None:
        stream.write(b"half of it")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, half)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


class FullDisk:
    """Takes some bytes, then has no space left, as a file on a full disk does."""

    def __init__(self, stream, room: int) -> None:
        self.stream, self.room = stream, room

    def write(self, data) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


@pytest.mark.parametrize("room", [0, 300, 50_000])
def test_a_checkpoint_on_a_full_disk_is_refused_in_a_sentence(tmp_path: Path, room: int) -> None:
    # torch.save hides the system's error inside a RuntimeError of its own.
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"old")
    weights = {"weight": torch.zeros(100_000)}
    with pytest.raises(InputError, match=r"the disk is full: .*last\.ckpt was not written"):
        write_atomically(path, lambda stream: torch.save(weights, FullDisk(stream, room)))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_disk_that_is_full_only_when_flushed_is_found_too(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="the disk is full"),
        full_disk_in_words(tmp_path / "last.ckpt"),
        open("/dev/full", "wb") as stream,
    ):
        torch.save({"weight": torch.zeros(10)}, stream)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_without_permission_is_refused_in_a_sentence(tmp_path: Path, number: int) -> None:
    def refused(stream) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(InputError, match="may not be written"):
        write_atomically(tmp_path / "result.json", refused)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), full_disk_in_words(tmp_path):
        (tmp_path / "missing").read_bytes()
