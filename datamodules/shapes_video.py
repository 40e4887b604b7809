"""A generated set of moving shapes, written as real AVI files in the layout of UCF101.

Six motions that no single frame tells apart, at speeds that vary. The files are read
back through the UCF101 reader like any other videos.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from datamodules.generated_folder import write_generated
from datamodules.ucf101 import UCF101Reader
from runs.errors import InputError

MOTIONS = ("Left", "Right", "Up", "Down", "Grow", "Shrink")
_MANIFEST = "shapes_video.json"
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1


@dataclass(frozen=True)
class ShapesVideo:
    """What is generated; equal values give equal frames.

    A clip shows one shape on a still background. Along the moving coordinate (horizontal,
    vertical or size) it covers ``travel`` periods at even speed and meets its ``middle`` value
    half-way; all coordinates wrap around. ``middle`` and the coordinates at rest are drawn alike
    in every class, so the middle frame says nothing about the class; with ``middle_spread=1``
    they are uniform over the period and no frame at any time does.

    Attributes:
        seed: seed of everything.
        train_per_class: training clips of each motion.
        test_per_class: test clips of each motion.
        side: frame width and height in pixels.
        frames: fewest and most frames of a clip; the play rate varies with it.
        travel: least and most of the moving coordinate's period covered by a clip.
        middle_spread: width of the distribution of middle values, as a share of the period.
        radius: smallest and largest half-width of the shape in pixels.
        texture: standard deviation of the background texture in grey levels.
        background: least and most mean level of a background's channels, 0..255.
        colour: least and most level of a shape's channels, 0..255.
        noise: standard deviation of the noise of each frame in grey levels.
    """

    seed: int
    train_per_class: int
    test_per_class: int
    side: int
    frames: tuple[int, int]
    travel: tuple[float, float]
    middle_spread: float
    radius: tuple[float, float]
    texture: float
    background: tuple[float, float]
    colour: tuple[float, float]
    noise: float

    def clip(self, motion: str, number: int) -> np.ndarray:
        """Clip ``number`` of a motion: (F, side, side, 3) uint8 RGB."""
        generator = np.random.default_rng([self.seed, MOTIONS.index(motion), number])
        num_frames = int(generator.integers(self.frames[0], self.frames[1] + 1))
        travel = generator.uniform(*self.travel)
        across, down, size = 0.5 + self.middle_spread * generator.uniform(-0.5, 0.5, 3)
        background = self._background(generator)
        colour = generator.uniform(*self.colour, 3)
        shape = int(generator.integers(3))

        progress = travel * ((np.arange(num_frames) + 0.5) / num_frames - 0.5)
        coordinates = {"x": across, "y": down, "size": size}
        moving, sign = {
            "Left": ("x", -1),
            "Right": ("x", 1),
            "Up": ("y", -1),
            "Down": ("y", 1),
            "Grow": ("size", 1),
            "Shrink": ("size", -1),
        }[motion]
        coordinates[moving] = coordinates[moving] + sign * progress
        x, y, size_phase = (np.broadcast_to(coordinates[name] % 1.0, num_frames) for name in ("x", "y", "size"))
        radius = self.radius[0] + size_phase * (self.radius[1] - self.radius[0])

        cover = self._cover(shape, x * self.side, y * self.side, radius)[..., None]
        frames = background * (1 - cover) + colour * cover
        frames += generator.normal(0, self.noise, frames.shape)
        return np.clip(np.rint(frames), 0, 255).astype(np.uint8)

    def _background(self, generator: np.random.Generator) -> np.ndarray:
        """A smooth random texture around a random colour, (side, side, 3)."""
        coarse = generator.normal(0, self.texture, (8, 8, 3))
        place = np.linspace(0, 7, self.side)
        low = np.minimum(place.astype(int), 6)
        share = place - low
        rows = coarse[low] * (1 - share)[:, None, None] + coarse[low + 1] * share[:, None, None]
        texture = rows[:, low] * (1 - share)[:, None] + rows[:, low + 1] * share[:, None]
        return np.clip(generator.uniform(*self.background, 3) + texture, 0, 255)

    def _cover(self, shape: int, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """How much of each pixel the shape covers, (F, side, side) in [0, 1]; edges wrap."""
        pixel = np.arange(self.side) + 0.5
        half = self.side / 2
        dx = (pixel[None, None, :] - x[:, None, None] + half) % self.side - half
        dy = (pixel[None, :, None] - y[:, None, None] + half) % self.side - half
        if shape == 0:
            reach = np.hypot(dx, dy)
        elif shape == 1:
            reach = np.maximum(np.abs(dx), np.abs(dy))
        else:
            reach = np.abs(dx) + np.abs(dy)
        return np.clip(radius[:, None, None] - reach + 0.5, 0, 1)

    def write(self, root: Path, lists_folder: str) -> None:
        """Writes all clips and lists to ``root``, which appears whole or not at all.

        A set of the same parameters is left as it is, one of other parameters is replaced.

        Raises:
            InputError: ``root`` holds something that was not generated here.
        """
        parameters = asdict(self) | {"version": _GENERATOR_VERSION, "lists": lists_folder}
        write_generated(
            root, _MANIFEST, parameters, "generated clips", lambda folder: self._write_files(folder, lists_folder)
        )

    def _write_files(self, folder: Path, lists_folder: str) -> None:
        lists = folder / lists_folder
        lists.mkdir(parents=True, exist_ok=True)
        train, test = [], []
        for class_id, motion in enumerate(MOTIONS, start=1):
            videos = folder / "UCF-101" / motion
            videos.mkdir(parents=True)
            for number in range(self.train_per_class + self.test_per_class):
                file = f"v_{motion}_g{number + 1:02d}_c01.avi"
                _write_avi(videos / file, self.clip(motion, number))
                if number < self.train_per_class:
                    train.append(f"{motion}/{file} {class_id}")
                else:
                    test.append(f"{motion}/{file}")
        classes = [f"{class_id} {motion}" for class_id, motion in enumerate(MOTIONS, start=1)]
        for name, lines in (("classInd", classes), ("trainlist01", train), ("testlist01", test)):
            (lists / f"{name}.txt").write_text("\n".join(lines) + "\n")


def _write_avi(path: Path, frames: np.ndarray) -> None:
    """MPEG-4 part 2 in AVI at 25 frames/s, as in UCF101, at a quality that keeps small shapes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(25))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.bit_rate = 1_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


class ShapesVideoReader(UCF101Reader):
    """Generates the clips where they are not there yet, then reads them as UCF101.

    Args: ``lists_folder`` as for UCF101, the others as for ``ShapesVideo``.
    """

    instructions = "the clips are generated there when the run prepares its data"

    def __init__(
        self,
        lists_folder: str,
        seed: int,
        train_per_class: int,
        test_per_class: int,
        side: int,
        frames: list[int],
        travel: list[float],
        middle_spread: float,
        radius: list[float],
        texture: float,
        background: list[float],
        colour: list[float],
        noise: float,
    ) -> None:
        super().__init__(lists_folder)
        self.shapes = ShapesVideo(
            seed=seed,
            train_per_class=train_per_class,
            test_per_class=test_per_class,
            side=side,
            frames=_pair("frames", frames),
            travel=_pair("travel", travel),
            middle_spread=middle_spread,
            radius=_pair("radius", radius),
            texture=texture,
            background=_pair("background", background),
            colour=_pair("colour", colour),
            noise=noise,
        )

    def prepare(self, root: Path) -> None:
        self.shapes.write(root, self.lists_folder)


def _pair(name: str, values: Sequence[float]) -> tuple[Any, Any]:
    if len(values) != 2 or values[0] > values[1]:
        raise InputError(f"data.reader.{name}={list(values)} must be [least, most]")
    return values[0], values[1]
