"""ShapesWSSS: a generated set for segmentation from image labels, written as real files in VOC's layout.

What tells the classes apart is a small badge; the object is the whole flat ellipse around it. A
classifier needs the badge alone, so its activation maps miss the body, as on photographs they miss
all but the most discriminative part. The files are read back by the same reader as VOC's.
"""

from colorsys import hsv_to_rgb
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from components.voc import palette_image
from datamodules.generated_folder import write_generated
from datamodules.photograph_files import VOCReader
from runs.errors import InputError, did_you_mean

BADGES = ("stripes", "checker", "cross", "ring")
_MANIFEST = "shapes_wsss.json"
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1
_TRIES = 50  # to find a place for an object


@dataclass(frozen=True)
class ShapesWSSS:
    """What is generated; equal values give equal files.

    Attributes:
        seed: seed of everything.
        class_names: badges, of stripes, checker, cross and ring; class c has the mask value c + 1.
        train: number of training images.
        val: number of validation images.
        side: width and height in pixels.
        half_axis: least and most half-axis of an ellipse in pixels.
        badge: least and most side of a badge in pixels.
        hue: least and most hue of the background, 0..1; no ellipse has a hue of that range.
        smooth: standard deviation of the background's smoothing in pixels.
    """

    seed: int
    class_names: tuple[str, ...]
    train: int
    val: int
    side: int
    half_axis: tuple[float, float]
    badge: tuple[int, int]
    hue: tuple[float, float]
    smooth: float

    def picture(self, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image ``number``: (side, side, 3) RGB and its mask (side, side)."""
        generator = np.random.default_rng([self.seed, number])
        image = self._background(generator)
        mask = np.zeros((self.side, self.side), np.uint8)
        wanted = min(int(generator.integers(1, 3)), len(self.class_names))
        for label in generator.choice(len(self.class_names), size=wanted, replace=False):
            self._add_object(image, mask, int(label), generator)
        return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8), mask

    def _background(self, generator: np.random.Generator) -> NDArray[np.float64]:
        """Smoothed noise in one range of hues, (side, side, 3) in 0..1."""
        noise = gaussian_filter(generator.normal(size=(3, self.side, self.side)), (0, self.smooth, self.smooth))
        share = noise / (np.abs(noise).max(axis=(1, 2), keepdims=True) + 1e-9) / 2 + 0.5
        hue = self.hue[0] + share[0] * (self.hue[1] - self.hue[0])
        return _rgb(hue, 0.3 + 0.3 * share[1], 0.35 + 0.3 * share[2])

    def _add_object(
        self, image: NDArray[np.float64], mask: NDArray[np.uint8], label: int, generator: np.random.Generator
    ) -> None:
        """Draws an ellipse with its badge where no other object is; leaves it out if there is no place."""
        y, x = np.mgrid[: self.side, : self.side]
        for _ in range(_TRIES):
            long, short = generator.uniform(*self.half_axis, 2)
            angle = generator.uniform(0, np.pi)
            centre_y, centre_x = generator.uniform(self.half_axis[0], self.side - self.half_axis[0], 2)
            along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
            across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
            body = (along / long) ** 2 + (across / short) ** 2 <= 1
            size = int(generator.integers(self.badge[0], self.badge[1] + 1))
            # An ellipse is convex: a square lies in it where its four corners do.
            reach = self.side - size + 1
            last = size - 1
            fits = body[:reach, :reach] & body[last:, :reach] & body[:reach, last:] & body[last:, last:]
            places = np.argwhere(fits)
            if len(places) and not mask[body].any():
                break
        else:
            return
        outside = 1 - (self.hue[1] - self.hue[0])
        margin = 0.08 * outside
        hue = (self.hue[1] + margin + generator.uniform() * (outside - 2 * margin)) % 1.0
        image[body] = hsv_to_rgb(hue, generator.uniform(0.6, 1.0), generator.uniform(0.6, 1.0))
        top, left = places[generator.integers(len(places))]
        bright = badge_pattern(self.class_names[label], size)[..., None]
        image[top : top + size, left : left + size] = np.where(bright, 0.95, 0.05)
        mask[body] = label + 1

    def write(self, root: Path) -> None:
        """Writes all files to ``root``, which appears whole or not at all.

        A set of the same parameters is left as it is, one of other parameters is replaced.

        Raises:
            InputError: ``root`` holds something that was not generated here.
        """
        parameters = asdict(self) | {"version": _GENERATOR_VERSION}
        write_generated(root, _MANIFEST, parameters, "generated images", self._write_files)

    def _write_files(self, root: Path) -> None:
        folder = root / "VOCdevkit" / "VOC2012"
        folders = ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation")
        images, annotations, masks, lists = (folder / name for name in folders)
        for made in (images, annotations, masks, lists):
            made.mkdir(parents=True)
        names = [f"shapes_{number:06d}" for number in range(self.train + self.val)]
        for number, name in enumerate(names):
            image, mask = self.picture(number)
            # Colour at full resolution: halving it would blur the badges' edges into the body.
            Image.fromarray(image).save(images / f"{name}.jpg", quality=95, subsampling=0)
            palette_image(mask).save(masks / f"{name}.png")
            (annotations / f"{name}.xml").write_text(self._annotation(name, mask))
        for list_name, members in (("train", names[: self.train]), ("val", names[self.train :])):
            (lists / f"{list_name}.txt").write_text("\n".join(members) + "\n")

    def _annotation(self, name: str, mask: NDArray[np.uint8]) -> str:
        """VOC's XML: size, and name and 1-based box of each object."""
        objects = ""
        for value in np.unique(mask[mask > 0]):
            rows, columns = np.nonzero(mask == value)
            corners = {"xmin": columns.min(), "ymin": rows.min(), "xmax": columns.max(), "ymax": rows.max()}
            box = "".join(f"<{key}>{int(place) + 1}</{key}>" for key, place in corners.items())
            name_of = self.class_names[value - 1]
            objects += f"  <object><name>{name_of}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>\n"
        size = f"<width>{self.side}</width><height>{self.side}</height><depth>3</depth>"
        return f"<annotation>\n  <filename>{name}.jpg</filename>\n  <size>{size}</size>\n{objects}</annotation>\n"


def badge_pattern(name: str, size: int) -> NDArray[np.bool_]:
    """Where a badge is bright, (size, size): the only thing that tells the classes apart."""
    y, x = np.mgrid[:size, :size]
    middle = (size - 1) / 2
    if name == "stripes":
        return x // 2 % 2 == 0
    if name == "checker":
        return (x // 2 + y // 2) % 2 == 0
    if name == "cross":
        return (np.abs(x - middle) <= 1) | (np.abs(y - middle) <= 1)
    radius = np.hypot(x - middle, y - middle)
    return (radius <= middle) & (radius >= middle - 2)


def _rgb(hue: NDArray, saturation: NDArray, value: NDArray) -> NDArray[np.float64]:
    """HSV of 0..1 to RGB, one array each to (..., 3)."""
    place = (np.array([5.0, 3.0, 1.0]) + hue[..., None] * 6) % 6
    ramp = np.clip(np.minimum(place, 4 - place), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)


class ShapesWSSSReader(VOCReader):
    """Generates the images where they are not there yet, then reads them as VOC.

    Args: as for `ShapesWSSS` and `VOCReader`.
    """

    instructions = "the images are generated there when the run prepares its data"

    def __init__(
        self,
        masks_folder: str,
        seed: int,
        class_names: list[str],
        train: int,
        val: int,
        side: int,
        half_axis: list[float],
        badge: list[int],
        hue: list[float],
        smooth: float,
    ) -> None:
        super().__init__(masks_folder)
        for name in class_names:
            if name not in BADGES:
                raise InputError(f"data.class_names: there is no badge '{name}': {did_you_mean(name, BADGES)}")
        for name, pair in (("half_axis", half_axis), ("badge", badge), ("hue", hue)):
            if len(pair) != 2 or pair[0] > pair[1]:
                raise InputError(f"data.reader.{name}={list(pair)} must be [least, most]")
        if badge[1] > half_axis[0]:
            raise InputError(
                f"data.reader.badge={list(badge)}: a badge of {badge[1]} pixels does not fit into an ellipse with "
                f"half-axes of {half_axis[0]}"
            )
        self.shapes = ShapesWSSS(
            seed,
            tuple(class_names),
            train,
            val,
            side,
            (half_axis[0], half_axis[1]),
            (badge[0], badge[1]),
            (hue[0], hue[1]),
            smooth,
        )

    def prepare(self, root: Path) -> None:
        self.shapes.write(root)
