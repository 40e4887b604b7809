"""Generated pictures of Voronoi cells, flat, striped or shaded, written as real files in the layout of BSDS500."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from components.metrics.regions import boundary
from datamodules.bsds_files import BSDS500Reader
from datamodules.generated_folder import write_generated
from runs.errors import InputError

SPLIT = "test"
_MANIFEST = "voronoi_textures.json"
_GENERATOR_VERSION = 1  # raise it when the same parameters would give other files
_TRIES = 1000  # to place the cells
_LEAST_DISTANCE = 60.0  # of any two cells' mean colours, of 0..255 in each channel


@dataclass(frozen=True)
class VoronoiTextures:
    """What is generated; equal values give equal files.

    The cells of a picture are flat, or a sine along a random direction in brightness, or a linear gradient
    in brightness. No two have nearly the same mean colour. The human map is the cells.

    Attributes:
        seed: of everything.
        images: number of pictures.
        height: pixels.
        width: pixels.
        periods: of the sine textures in pixels, a cell each.
        flat: cells of one colour.
        gradients: cells with a gradient.
        noise: standard deviation of the noise on each channel, of 0..255.
        least_share: of the picture's area, that a cell takes.
    """

    seed: int
    images: int
    height: int
    width: int
    periods: tuple[float, ...]
    flat: int
    gradients: int
    noise: float
    least_share: float

    @property
    def cells(self) -> int:
        return self.flat + len(self.periods) + self.gradients

    def picture(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Picture ``number``: (height, width, 3) RGB and its cells (height, width), from 1."""
        random = np.random.default_rng([self.seed, number])
        labels = self._cells(random)
        y, x = np.mgrid[: self.height, : self.width]
        image = np.empty((self.height, self.width, 3))
        for cell, colour in enumerate(self._colours(random)):
            angle = random.uniform(0, np.pi)
            along = x * np.cos(angle) + y * np.sin(angle)
            inside = labels == cell
            if cell < self.flat:
                shade = np.zeros_like(along)
            elif cell < self.flat + len(self.periods):
                shade = 40 * np.sin(2 * np.pi * along / self.periods[cell - self.flat])
            else:
                reach = along[inside]
                shade = 60 * ((along - reach.min()) / (np.ptp(reach) + 1e-9) - 0.5)
            image[inside] = colour + shade[inside][:, None]
        image += random.normal(0, self.noise, image.shape)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), (labels + 1).astype(np.uint16)

    def _cells(self, random: np.random.Generator) -> NDArray[np.int64]:
        """Nearest of random points, (height, width), drawn again until each cell is large enough."""
        y, x = np.mgrid[: self.height, : self.width]
        for _ in range(_TRIES):
            points = random.uniform((0, 0), (self.height, self.width), (self.cells, 2))
            distance = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
            labels = distance.argmin(axis=-1)
            if np.bincount(labels.ravel(), minlength=self.cells).min() >= self.least_share * labels.size:
                return labels
        raise InputError(
            f"data.reader.least_share={self.least_share}: {self.cells} cells of that share of a picture were not "
            "found: lower it"
        )

    def _colours(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Mean RGB of each cell, (cells, 3), far enough from 0 and 255 for its texture."""
        for _ in range(_TRIES):
            colours = random.uniform(70, 185, (self.cells, 3))
            apart = np.linalg.norm(colours[:, None] - colours, axis=-1)
            if apart[~np.eye(self.cells, dtype=bool)].min(initial=np.inf) >= _LEAST_DISTANCE:
                return colours
        raise InputError(f"data.reader: no {self.cells} colours that differ enough were found: use fewer cells")

    def write(self, root: Path) -> None:
        """Writes all files to ``root``, which appears whole or not at all; the same ones are left as they are.

        Raises:
            InputError: ``root`` holds something that was not generated here, or a value that leaves no picture.
        """
        parameters = {**asdict(self), "version": _GENERATOR_VERSION}
        write_generated(root, _MANIFEST, parameters, "generated pictures", self._write_files)

    def _write_files(self, root: Path) -> None:
        folders = (root / "BSDS500" / "data" / kind / SPLIT for kind in ("images", "groundTruth"))
        photographs, truths = folders
        for folder in (photographs, truths):
            folder.mkdir(parents=True)
        for number in range(self.images):
            image, labels = self.picture(number)
            # Full colour resolution: halving it would blur the cells' edges.
            Image.fromarray(image).save(photographs / f"{number + 1}.jpg", quality=95, subsampling=0)
            cell = np.empty((1, 1), dtype=object)
            cell[0, 0] = {"Segmentation": labels, "Boundaries": boundary(labels)}
            savemat(truths / f"{number + 1}.mat", {"groundTruth": cell}, do_compression=True)


class VoronoiTexturesReader(BSDS500Reader):
    """Generates the pictures where they are not there yet, then reads them as BSDS500.

    Args: as for `VoronoiTextures`.
    """

    instructions = "the pictures are generated there when the run prepares its data"

    def __init__(
        self,
        seed: int,
        images: int,
        height: int,
        width: int,
        periods: list[float],
        flat: int,
        gradients: int,
        noise: float,
        least_share: float,
    ) -> None:
        self.textures = VoronoiTextures(
            seed, images, height, width, tuple(periods), flat, gradients, noise, least_share
        )
        if images < 1 or self.textures.cells < 2:
            raise InputError(
                f"data.reader: {images} images of {self.textures.cells} cells: at least 1 image and 2 cells are needed"
            )

    def prepare(self, root: Path) -> None:
        self.textures.write(root)
