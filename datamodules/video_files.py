"""Video files become frames, by PyAV: checking a file, counting its frames, reading some of them.

One pass from the first frame, converting to RGB only the frames that are wanted, was chosen over
seeking. Measured on the 36 UCF101 clips of the shared sample, 8 centre frames each, processor time
of one thread (``benchmarks/video_decoding.py`` repeats it): the one pass takes 16 ms a clip,
decoding all frames to RGB arrays 3.7 times and seeking by timestamp to the key frame before each
wanted frame 2.1 times as long. Seeking also returns a wrong frame or none in 7 of the 36 files,
and three quarters of the clips hold a single key frame. Skipping whole groups of pictures between
wanted frames is exact and saves a sixth, too little for what it adds. Decoder threads gain
nothing at 320x240; stopping after the last wanted frame gains less than the measurement's noise.

The number of frames is the number that decodes, never what the header says. A first reading
starts from the number of non-empty packets (demuxing: 1 ms a clip), goes on to the last frame,
and is repeated in the rare case that the two numbers differ; later readings of the file know.
"""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from torchvision.transforms.v2 import functional as pixels

from runs.errors import InputError

VIDEO_SUFFIXES = frozenset({".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v"})
# A file with fewer packets than this share of the frames its header promises was cut off.
WHOLE_SHARE = 0.9


class UnreadableVideoError(InputError):
    """A file that gives no usable frames; ``reason`` is a phrase without the file's name.

    It can be built from its message alone, as loaders do that pass on errors of their workers.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def _unreadable(path: Path, reason: str) -> UnreadableVideoError:
    return UnreadableVideoError(f"{path} cannot be read as a video: {reason}", reason)


class VideoProbe(NamedTuple):
    """What a quick look tells: frames by the header (0: not stated), non-empty video packets."""

    header_frames: int
    packets: int


def _open(path: Path) -> av.container.InputContainer:
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise _unreadable(path, "it is not a video file") from error
    if not container.streams.video:
        container.close()
        raise _unreadable(path, "it holds no video stream")
    # Loaders run in parallel by processes; a thread pool in each would only compete.
    container.streams.video[0].thread_type = "NONE"
    return container


def _packets(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """Video packets up to the point where a damaged container can no longer be followed."""
    packets = container.demux(container.streams.video[0])
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            return
        yield packet


def _decode(packet: av.Packet) -> list[av.VideoFrame]:
    """The frames a packet completes; none for a damaged one, as video players do."""
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return []


def probe(path: Path) -> VideoProbe:
    """Looks whether a file can be read: demuxes it all, decodes up to the first frame.

    Raises:
        UnreadableVideoError: no video, no video stream, no frame that decodes, or a file that was
            cut off (fewer than 90 % of the frames that its header states).
    """
    with _open(path) as container:
        header_frames = container.streams.video[0].frames
        packets, decodes = 0, False
        for packet in _packets(container):
            packets += packet.size > 0
            decodes = decodes or bool(_decode(packet))
    if not decodes:
        raise _unreadable(path, "no frame of it can be decoded")
    if packets < WHOLE_SHARE * header_frames:
        raise _unreadable(path, f"it is truncated, {packets} of {header_frames} frames are left")
    return VideoProbe(header_frames, packets)


def count_packets(path: Path) -> int:
    """Non-empty video packets: an estimate of the number of frames that costs no decoding."""
    with _open(path) as container:
        return sum(packet.size > 0 for packet in _packets(container))


def count_frames(path: Path) -> int:
    """Frames that decode, found by decoding the whole file without converting any."""
    with _open(path) as container:
        return sum(len(_decode(packet)) for packet in _packets(container))


def _read_wanted(path: Path, wanted: np.ndarray | None, stop_early: bool) -> tuple[dict[int, np.ndarray], int]:
    """One pass over a file.

    Args:
        path: the file.
        wanted: frame numbers to convert; None converts all.
        stop_early: leave after the last wanted frame.

    Returns:
        The (H, W, 3) RGB frames by number, and how many frames were decoded.
    """
    keep = None if wanted is None else {int(number) for number in wanted}
    last = max(keep) if keep else None
    frames: dict[int, np.ndarray] = {}
    decoded = 0
    reformatter = VideoReformatter()
    size: dict[str, int] = {}
    with _open(path) as container:
        for packet in _packets(container):
            for frame in _decode(packet):
                # A stream may change its size on the way; a clip has one.
                size = size or {"width": frame.width, "height": frame.height}
                if keep is None or decoded in keep:
                    rgb = reformatter.reformat(frame, format="rgb24", **size)
                    frames[decoded] = rgb.to_ndarray()
                decoded += 1
            if stop_early and last is not None and decoded > last:
                break
    return frames, decoded


def _stack(frames: dict[int, np.ndarray], numbers: np.ndarray) -> Tensor:
    """(T, 3, H, W) uint8 with channels last in memory, the layout that resizes fastest."""
    return torch.from_numpy(np.stack([frames[int(number)] for number in numbers])).permute(0, 3, 1, 2)


def read_frames(path: Path, frame_indices: np.ndarray) -> Tensor:
    """Reads the named frames, in the order named, repeats included.

    Args:
        path: a video file.
        frame_indices: (T,) 0-based numbers of decoded frames.

    Returns:
        (T, 3, H, W) uint8 RGB.

    Raises:
        UnreadableVideoError: the file has no such frame.
    """
    frames, decoded = _read_wanted(path, frame_indices, stop_early=True)
    if decoded <= int(np.max(frame_indices)):
        raise _unreadable(path, f"frame {int(np.max(frame_indices))} was asked for but only {decoded} decode")
    return _stack(frames, frame_indices)


class FrameSource:
    """Reads frames that are chosen by a clip's true length, remembering lengths or all frames.

    What comes back depends on the file and the choice alone, not on what was read before.

    Args:
        cache: ``none`` decodes at each reading; ``ram`` keeps every frame of every clip read, in
            each process, with the short side reduced to ``cache_side``.
        cache_side: short side of kept frames in pixels; smaller clips keep their size.
    """

    def __init__(self, cache: Literal["none", "ram"], cache_side: int) -> None:
        self.cache = cache
        self.cache_side = cache_side
        self._lengths: dict[Path, int] = {}
        self._clips: dict[Path, Tensor] = {}

    def read(self, path: Path, choose: Callable[[int], np.ndarray]) -> Tensor:
        """The frames that ``choose(number of decodable frames)`` names, (T, 3, H, W) uint8.

        Warns once per file (and process) where fewer frames decode than the file has packets.

        Raises:
            UnreadableVideoError: nothing decodes.
        """
        if self.cache == "ram":
            if path not in self._clips:
                self._clips[path] = self._whole_clip(path)
            clip = self._clips[path]
            return clip[torch.from_numpy(choose(len(clip)))]
        length = self._lengths.get(path)
        if length is not None:
            return read_frames(path, choose(length))
        estimate = count_packets(path)
        numbers = choose(max(estimate, 1))
        frames, decoded = _read_wanted(path, numbers, stop_early=False)
        if decoded == 0:
            raise _unreadable(path, "no frame of it can be decoded")
        self._lengths[path] = decoded
        if decoded != estimate:
            warnings.warn(
                f"{path}: {decoded} frames decode although the file promises {estimate}; the decoded number is used",
                stacklevel=2,
            )
            return read_frames(path, choose(decoded))
        return _stack(frames, numbers)

    def _whole_clip(self, path: Path) -> Tensor:
        frames, decoded = _read_wanted(path, None, stop_early=False)
        if decoded == 0:
            raise _unreadable(path, "no frame of it can be decoded")
        clip = _stack(frames, np.arange(decoded))
        if min(clip.shape[-2:]) > self.cache_side:
            clip = pixels.resize(clip, [self.cache_side], antialias=True)
        return clip
