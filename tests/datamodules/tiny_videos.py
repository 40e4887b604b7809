"""Small generated video files and trees, written with PyAV for the tests of the readers."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_avi(path: Path, num_frames: int, height: int = 48, width: int = 64) -> Path:
    """A clip whose frame ``i`` is a smooth ramp around grey level ``12 + 5 * i``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(-2, 2, width)[None, :, None] + np.zeros((height, 1, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.bit_rate = 2_000_000
        for i in range(num_frames):
            pixels = np.clip(12 + 5 * i + ramp, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """An AVI file that holds half a second of sound and no picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def header_count_place(content: bytes) -> int:
    """Where an AVI file states the frames of its video stream (``dwLength`` of ``strh``)."""
    return content.index(b"strh") + 8 + 32


CLASSES = ["Archery", "Biking", "Diving", "HandstandPushups"]


def write_ucf(root: Path, classes: list[str], train: int = 3, test: int = 1) -> Path:
    """A tiny UCF101 tree of ``classes`` out of CLASSES, whose official ids are 1-based."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(CLASSES, 1)))
    trainlist, testlist = "", ""
    for name in classes:
        for number in range(train + test):
            file_class = name.replace("Handstand", "HandStand")
            clip = f"{name}/v_{file_class}_g{number + 1:02d}_c01.avi"
            write_avi(root / "UCF-101" / clip, 9 + number)
            if number < train:
                trainlist += f"{clip} {CLASSES.index(name) + 1}\n"
            else:
                testlist += f"{clip}\n"
    (lists / "trainlist01.txt").write_text(trainlist)
    (lists / "testlist01.txt").write_text(testlist)
    return root
