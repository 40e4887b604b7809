"""A generated stereo scene with dense truth, written as real files in the layout of Middlebury 2014."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from datamodules.generated_folder import write_generated
from datamodules.stereo_files import Middlebury2014, write_pfm
from runs.errors import InputError

SCENE = "shapes"
_MANIFEST = "shapes_stereo.json"
_GENERATOR_VERSION = 1  # raise it when the same parameters would give other files


@dataclass(frozen=True)
class ShapesStereo:
    """What is generated; equal values give equal files.

    The left image is band-passed noise with textured rectangles in front of it. The right one is the
    left one warped forwards (x_right = x_left - d), the nearer pixel in front; what the left camera
    does not see is fresh noise. It is brighter by ``gain`` and ``offset`` and has noise of its own.

    Attributes:
        seed: of everything.
        height: pixels.
        width: pixels.
        rectangles: how many.
        disparities: least and most of the rectangles, pixels.
        background: disparity of the background, pixels.
        gain: of the right image.
        offset: of the right image, grey levels.
        noise: of the right image, share of 255.
    """

    seed: int
    height: int
    width: int
    rectangles: int
    disparities: tuple[int, int]
    background: int
    gain: float
    offset: float
    noise: float

    def scene(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Left and right image (H, W) uint8, disparity of the left (H, W), whether the right sees it (H, W)."""
        random = np.random.default_rng(self.seed)
        shape = (self.height, self.width)
        left, disparity = _texture(random, shape), np.full(shape, self.background)
        # Far ones first, so that near ones cover them.
        for near in sorted(random.integers(*self.disparities, self.rectangles, endpoint=True)):
            height, width = (int(random.uniform(0.2, 0.45) * side) for side in shape)
            y, x = int(random.integers(0, self.height - height)), int(random.integers(0, self.width - width))
            place = (slice(y, y + height), slice(x, x + width))
            left[place], disparity[place] = _texture(random, (height, width)), near
        right, visible = self._warp(left, disparity, random)
        right = self.gain * right + self.offset + random.normal(0, 255 * self.noise, shape)
        return _to_bytes(left), _to_bytes(right), disparity.astype(np.float32), visible

    def _warp(
        self, left: np.ndarray, disparity: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        rows, columns = np.indices(left.shape)
        target = columns - disparity
        right, front = _texture(random, left.shape), np.full(left.shape, -1)
        for near in np.unique(disparity):  # ascending: a nearer layer overwrites
            layer = (disparity == near) & (target >= 0)
            right[rows[layer], target[layer]] = left[layer]
            front[rows[layer], target[layer]] = near
        seen = front[rows, target.clip(0)]
        return right, (target >= 0) & (seen == disparity)

    def write(self, root: Path) -> None:
        """Writes the scene to ``root``, which appears whole or not at all; the same one is left as it is.

        Raises:
            InputError: ``root`` holds something that was not generated here.
        """
        parameters = {**asdict(self), "version": _GENERATOR_VERSION}
        write_generated(root, _MANIFEST, parameters, "a generated scene", self._write_files)

    def _write_files(self, root: Path) -> None:
        folder = root / "trainingQ" / SCENE
        folder.mkdir(parents=True)
        left, right, disparity, visible = self.scene()
        Image.fromarray(left).save(folder / "im0.png")
        Image.fromarray(right).save(folder / "im1.png")
        Image.fromarray(np.where(visible, 255, 128).astype(np.uint8)).save(folder / "mask0nocc.png")
        write_pfm(folder / "disp0GT.pfm", disparity)
        lines = ("width", self.width), ("height", self.height), ("ndisp", self.disparities[1] + 3)
        (folder / "calib.txt").write_text("".join(f"{key}={value}\n" for key, value in lines))


class ShapesStereoReader(Middlebury2014):
    """Generates the scene where it is not there yet, then reads it as Middlebury.

    Args: ``visible_only`` as for Middlebury, the others as for `ShapesStereo`.
    """

    instructions = "the scene is generated there when the run prepares its data"

    def __init__(
        self,
        visible_only: bool,
        seed: int,
        height: int,
        width: int,
        rectangles: int,
        disparities: list[int],
        background: int,
        gain: float,
        offset: float,
        noise: float,
    ) -> None:
        super().__init__("Q", visible_only)
        if len(disparities) != 2 or not background <= disparities[0] <= disparities[1]:
            raise InputError(
                f"data.reader.disparities={disparities} must be [least, most], behind which is the background"
            )
        self.shapes = ShapesStereo(
            seed, height, width, rectangles, (disparities[0], disparities[1]), background, gain, offset, noise
        )

    def prepare(self, root: Path) -> None:
        self.shapes.write(root)


def _texture(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Band-passed noise around a random grey level, (H, W) float64."""
    noise = random.normal(0, 1, shape)
    band = gaussian_filter(noise, 0.8) - gaussian_filter(noise, 3.0)
    return random.uniform(80, 170) + 30 * band / band.std()


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
