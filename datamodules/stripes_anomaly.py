"""Stripes: a generated texture with defects, written as real files in KolektorSDD2's layout.

A striped surface of random phase with smooth noise; defects are discs, scratches and patches whose stripes
run across. The files are read back by the same reader as KolektorSDD2's.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from datamodules.anomaly_files import KSDD2Reader
from datamodules.generated_folder import write_generated
from runs.errors import InputError, did_you_mean

KINDS = ("disc", "scratch", "patch")
_MANIFEST = "stripes_anomaly.json"
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1


@dataclass(frozen=True)
class StripesAnomaly:
    """What is generated; equal values give equal files. Brightness is 0..1.

    Attributes:
        seed: seed of everything.
        train_normal: normal training images.
        train_defective: defective training images, which unsupervised training leaves out.
        test_normal: normal test images.
        test_defective: defective test images, the kinds in turn.
        side: width and height in pixels.
        period: of the stripes, in pixels.
        amplitude: of the stripes.
        noise: standard deviation of the smooth noise.
        smooth: its extent, in pixels.
        kinds: of defects: disc, scratch, patch.
        contrast: of discs and scratches.
        radius: least and most of a disc, in pixels.
        scratch_width: in pixels.
        scratch_length: least and most, in pixels.
        patch_side: least and most, in pixels.
    """

    seed: int
    train_normal: int
    train_defective: int
    test_normal: int
    test_defective: int
    side: int
    period: float
    amplitude: float
    noise: float
    smooth: float
    kinds: tuple[str, ...]
    contrast: float
    radius: tuple[int, int]
    scratch_width: float
    scratch_length: tuple[int, int]
    patch_side: tuple[int, int]

    def picture(self, number: int, kind: str | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Image ``number`` with a defect of a kind, or none: grey (side, side) and its mask."""
        generator = np.random.default_rng([self.seed, number])
        y, x = np.mgrid[: self.side, : self.side]
        phase = generator.uniform(0, 2 * np.pi)
        stripes = self.amplitude * np.sin(2 * np.pi * x / self.period + phase)
        noise = gaussian_filter(generator.normal(size=(self.side, self.side)), self.smooth, mode="wrap")
        surface = 0.5 + self.noise * noise / noise.std()
        mask = np.zeros((self.side, self.side), dtype=bool)
        if kind is not None:
            mask = self._where(kind, y, x, generator)
        if kind == "patch":
            across = self.amplitude * np.sin(2 * np.pi * y / self.period + phase)
            stripes = np.where(mask, across, stripes)
        elif kind is not None:
            surface = surface + self.contrast * generator.choice((-1, 1)) * mask
        return np.rint(255 * np.clip(surface + stripes, 0, 1)).astype(np.uint8), mask

    def _where(self, kind: str, y: NDArray, x: NDArray, generator: np.random.Generator) -> NDArray[np.bool_]:
        if kind == "disc":
            radius = generator.integers(self.radius[0], self.radius[1] + 1)
            centre_y, centre_x = generator.uniform(radius, self.side - radius, 2)
            return (y - centre_y) ** 2 + (x - centre_x) ** 2 <= radius**2
        if kind == "scratch":
            length = generator.uniform(*self.scratch_length)
            angle = generator.uniform(0, np.pi)
            centre_y, centre_x = generator.uniform(0.25 * self.side, 0.75 * self.side, 2)
            along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
            across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
            return (np.abs(along) <= length / 2) & (np.abs(across) <= self.scratch_width / 2)
        height, width = generator.integers(self.patch_side[0], self.patch_side[1] + 1, 2)
        top, left = generator.integers(0, self.side - height), generator.integers(0, self.side - width)
        return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)

    def write(self, root: Path) -> None:
        """Writes all files to ``root``, which appears whole or not at all.

        Raises:
            InputError: ``root`` holds something that was not generated here.
        """
        parameters = asdict(self) | {"version": _GENERATOR_VERSION}
        write_generated(root, _MANIFEST, parameters, "generated stripes", self._write_files)

    def _write_files(self, root: Path) -> None:
        number = 0
        parts = (("train", self.train_normal, self.train_defective), ("test", self.test_normal, self.test_defective))
        for part, normal, defective in parts:
            (root / part).mkdir()
            kinds = [None] * normal + [self.kinds[place % len(self.kinds)] for place in range(defective)]
            for kind in kinds:
                image, mask = self.picture(number, kind)
                stem = f"{10000 + number}"
                Image.fromarray(image).save(root / part / f"{stem}.png")
                Image.fromarray((255 * mask).astype(np.uint8)).save(root / part / f"{stem}_GT.png")
                number += 1


class StripesAnomalyReader(KSDD2Reader):
    """Generates the images where they are not there yet, then reads them as KolektorSDD2.

    Args: as for `StripesAnomaly` and `KSDD2Reader`.
    """

    instructions = "the images are generated there when the run prepares its data"

    def __init__(
        self,
        val_split: float,
        split_seed: int,
        seed: int,
        train_normal: int,
        train_defective: int,
        test_normal: int,
        test_defective: int,
        side: int,
        period: float,
        amplitude: float,
        noise: float,
        smooth: float,
        kinds: list[str],
        contrast: float,
        radius: list[int],
        scratch_width: float,
        scratch_length: list[int],
        patch_side: list[int],
    ) -> None:
        super().__init__(None, val_split, split_seed)
        for kind in kinds:
            if kind not in KINDS:
                raise InputError(f"data.reader.kinds: there is no defect '{kind}': {did_you_mean(kind, KINDS)}")
        for name, pair in (("radius", radius), ("scratch_length", scratch_length), ("patch_side", patch_side)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] < side:
                raise InputError(
                    f"data.reader.{name}={list(pair)} must be [least, most], below data.reader.side={side}"
                )
        self.stripes = StripesAnomaly(
            seed, train_normal, train_defective, test_normal, test_defective, side, period, amplitude, noise, smooth,
            tuple(kinds), contrast, (radius[0], radius[1]), scratch_width, (scratch_length[0], scratch_length[1]),
            (patch_side[0], patch_side[1]),
        )  # fmt: skip

    def prepare(self, root: Path) -> None:
        self.stripes.write(root)
