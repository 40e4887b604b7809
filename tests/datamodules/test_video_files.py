"""Reading frames: the right ones, in number by what decodes and not by what a header says."""

import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from datamodules.video_files import (
    FrameSource,
    UnreadableVideoError,
    count_frames,
    count_packets,
    probe,
    read_frames,
)
from tests.datamodules.tiny_videos import header_count_place, write_audio, write_avi


def whole_clip(path: Path) -> np.ndarray:
    """Every frame, by the plain way: (F, H, W, 3)."""
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def with_header_count(path: Path, count: int) -> Path:
    """Makes the header state another number of frames."""
    content = bytearray(path.read_bytes())
    place = header_count_place(bytes(content))
    content[place : place + 4] = count.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def with_blank_packets(path: Path, numbers: list[int]) -> Path:
    """Overwrites some packets, so that the file keeps its length but decodes fewer frames."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    for number in numbers:
        place = content.index(packets[number])
        size = len(packets[number])
        content[place : place + size] = b"\0" * size
    path.write_bytes(content)
    return path


def test_frames_are_those_of_a_whole_decode_in_the_order_asked(tmp_path: Path) -> None:
    path = write_avi(tmp_path / "clip.avi", 40)
    numbers = np.array([3, 3, 17, 0, 39])
    frames = read_frames(path, numbers)
    assert frames.shape == (5, 3, 48, 64)
    assert frames.dtype == torch.uint8
    assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), whole_clip(path)[numbers])
    levels = frames.float().mean((1, 2, 3)).numpy()
    assert np.abs(levels - (12 + 5 * numbers)).max() < 2


def test_real_clips_give_the_frames_of_a_whole_decode(real_root: Path) -> None:
    paths = sorted((real_root / "UCF-101").glob("*/*.avi"))[::6]
    for path in paths:
        whole = whole_clip(path)
        numbers = np.linspace(0, len(whole) - 1, 8).astype(int)
        source = FrameSource("none", 0)
        frames = source.read(path, lambda count: np.linspace(0, count - 1, 8).astype(int))
        assert np.array_equal(frames.permute(0, 2, 3, 1).numpy(), whole[numbers])
        assert count_frames(path) == count_packets(path) == len(whole)


def test_a_header_that_promises_too_many_frames_is_not_believed(tmp_path: Path) -> None:
    path = with_header_count(write_avi(tmp_path / "clip.avi", 30), 31)
    found = probe(path)
    assert (found.header_frames, found.packets) == (31, 30)
    asked = []
    FrameSource("none", 0).read(path, lambda count: asked.append(count) or np.array([count - 1]))
    assert asked == [30]


def test_frames_that_do_not_decode_are_not_counted_and_warned_of_once(tmp_path: Path) -> None:
    path = with_blank_packets(write_avi(tmp_path / "clip.avi", 30), [28, 29])
    decodable = len(whole_clip(write_avi(tmp_path / "same.avi", 28)))
    assert count_packets(path) == 30
    assert count_frames(path) == decodable
    source = FrameSource("none", 0)
    with pytest.warns(UserWarning, match=r"clip\.avi: 28 frames decode .* promises 30"):
        first = source.read(path, lambda count: np.array([0, count - 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(source.read(path, lambda count: np.array([0, count - 1])), first)
    assert np.abs(first[1].float().mean().item() - (12 + 5 * 27)) < 2


def test_a_frame_beyond_the_end_is_refused(tmp_path: Path) -> None:
    path = write_avi(tmp_path / "clip.avi", 10)
    with pytest.raises(UnreadableVideoError, match="frame 10 was asked for but only 10 decode"):
        read_frames(path, np.array([2, 10]))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "not a video file"),
        ("empty", "not a video file"),
        ("audio", "no video stream"),
        ("header only", "no frame of it can be decoded|not a video file"),
        ("cut off", "truncated, .* of 40 frames are left"),
    ],
)
def test_files_without_usable_frames_say_why(tmp_path: Path, kind: str, reason: str) -> None:
    path = tmp_path / "clip.avi"
    if kind == "audio":
        write_audio(path)
    elif kind in {"text", "empty"}:
        path.write_text("these are not pictures\n" * (kind == "text") * 50)
    else:
        content = write_avi(path, 40).read_bytes()
        start = content.index(b"movi")
        path.write_bytes(content[: start + 8 if kind == "header only" else len(content) // 3 * 2])
    with pytest.raises(UnreadableVideoError, match=reason) as error:
        probe(path)
    assert str(path) in str(error.value)


def test_the_ram_cache_decodes_once_and_keeps_small_clips_as_they_are(tmp_path: Path) -> None:
    path = write_avi(tmp_path / "clip.avi", 20)
    choose = lambda count: np.array([1, count - 1])  # noqa: E731
    direct = FrameSource("none", 0).read(path, choose)
    cached = FrameSource("ram", cache_side=48)
    assert torch.equal(cached.read(path, choose), direct)
    path.unlink()
    assert torch.equal(cached.read(path, choose), direct)


def test_the_ram_cache_reduces_the_short_side(tmp_path: Path) -> None:
    path = write_avi(tmp_path / "clip.avi", 5)
    frames = FrameSource("ram", cache_side=24).read(path, lambda count: np.arange(count))
    assert frames.shape == (5, 3, 24, 32)
