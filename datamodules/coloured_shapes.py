"""Coloured shapes: generated photographs whose colour only form can tell, as real files in COCO's and VOC's layout.

The hue of a shape is that of its class, its lightness is drawn without regard to the class, and the ground is grey
noise. Who predicts the colour of a grey picture must therefore recognise the shapes, and who can do that has what a
classifier or a segmenter of them needs.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import lab2rgb

from components.voc import palette_image
from datamodules.generated_folder import write_generated
from datamodules.photograph_colours import COCO2014Reader
from datamodules.photograph_files import VOCReader
from runs.errors import InputError, did_you_mean

SHAPES = ("circle", "square", "triangle", "cross", "ring")
_MANIFEST = "coloured_shapes.json"
# Raise when the same parameters would give other files.
_GENERATOR_VERSION = 1
_TRIES = 50  # to find a place for a shape


@dataclass(frozen=True)
class ColouredShapes:
    """What is generated; equal values give equal files.

    Attributes:
        seed: seed of everything.
        class_names: shapes, of circle, square, triangle, cross and ring; class c has the mask value c + 1.
        unlabelled: photographs without label, ``train2014/``.
        held_out: others of these, ``test2014/``.
        train: photographs with labels and masks in VOC's layout, list ``train``.
        test: others of these, list ``test``.
        side: width and height in pixels.
        shapes: least and most shapes of a picture.
        radius: least and most radius in pixels of the circle that a shape fits into.
        turn: a shape is turned by up to so many degrees to either side.
        hue_spread: the hue of a shape is that of its class, up to so many degrees to either side.
        chroma: of the shapes, units of Lab.
        lightness: least and most lightness of a shape, units of Lab.
        ground: least and most lightness of the ground, units of Lab.
        noise: standard deviation of the ground's lightness from pixel to pixel, units of Lab.
    """

    seed: int
    class_names: list[str]
    unlabelled: int
    held_out: int
    train: int
    test: int
    side: int
    shapes: list[int]
    radius: list[float]
    turn: float
    hue_spread: float
    chroma: float
    lightness: list[float]
    ground: list[float]
    noise: float

    def __post_init__(self) -> None:
        for name in self.class_names:
            if name not in SHAPES:
                raise InputError(
                    f"coloured_shapes.class_names: there is no shape '{name}': {did_you_mean(name, SHAPES)}"
                )
        for name in ("shapes", "radius", "lightness", "ground"):
            pair = getattr(self, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                raise InputError(f"coloured_shapes.{name}={list(pair)} must be [least, most]")

    def picture(self, part: str, number: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Picture ``number`` of a part: (side, side, 3) RGB and its mask (side, side)."""
        generator = np.random.default_rng([self.seed, *part.encode(), number])
        lab = np.zeros((self.side, self.side, 3))
        ground = generator.uniform(*self.ground)
        lab[..., 0] = np.clip(ground + generator.normal(0, self.noise, (self.side, self.side)), 0, 100)
        mask = np.zeros((self.side, self.side), np.uint8)
        wanted = int(generator.integers(self.shapes[0], self.shapes[1] + 1))
        for label in generator.integers(len(self.class_names), size=wanted):
            self._add_shape(lab, mask, int(label), generator)
        return np.clip(np.rint(lab2rgb(lab) * 255), 0, 255).astype(np.uint8), mask

    def hue(self, label: int) -> float:
        """The middle hue of a class in degrees of Lab: the classes share the circle evenly."""
        return 360.0 * label / len(self.class_names)

    def _add_shape(
        self, lab: NDArray[np.float64], mask: NDArray[np.uint8], label: int, generator: np.random.Generator
    ) -> None:
        """Draws a shape where no other one is; leaves it out if there is no place."""
        y, x = np.mgrid[: self.side, : self.side]
        for _ in range(_TRIES):
            radius = generator.uniform(*self.radius)
            centre_y, centre_x = generator.uniform(radius, self.side - radius, 2)
            around = np.hypot(x - centre_x, y - centre_y) <= radius + 2
            if not mask[around].any():
                break
        else:
            return
        turn = np.deg2rad(generator.uniform(-self.turn, self.turn))
        across, down = (x - centre_x) / radius, (y - centre_y) / radius
        u = across * np.cos(turn) + down * np.sin(turn)
        v = down * np.cos(turn) - across * np.sin(turn)
        body = inside(self.class_names[label], u, v)
        hue = np.deg2rad(self.hue(label) + generator.uniform(-self.hue_spread, self.hue_spread))
        lab[body] = generator.uniform(*self.lightness), self.chroma * np.cos(hue), self.chroma * np.sin(hue)
        mask[body] = label + 1

    def write(self, root: Path) -> None:
        """Writes all files to ``root``, which appears whole or not at all.

        A set of the same parameters is left as it is, one of other parameters is replaced.

        Raises:
            InputError: ``root`` holds something that was not generated here.
        """
        parameters = asdict(self) | {"version": _GENERATOR_VERSION}
        write_generated(root, _MANIFEST, parameters, "generated shapes", self._write_files)

    def _write_files(self, root: Path) -> None:
        for folder, count in (("train2014", self.unlabelled), ("test2014", self.held_out)):
            (root / folder).mkdir()
            for number in range(count):
                self._save(self.picture(folder, number)[0], root / folder / f"COCO_{folder}_{number + 1:012d}.jpg")
        voc = root / "VOCdevkit" / "VOC2012"
        folders = ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation")
        images, annotations, masks, lists = (voc / name for name in folders)
        for made in (images, annotations, masks, lists):
            made.mkdir(parents=True)
        for part, count in (("train", self.train), ("test", self.test)):
            names = [f"{part}_{number:06d}" for number in range(count)]
            for number, name in enumerate(names):
                image, mask = self.picture(part, number)
                self._save(image, images / f"{name}.jpg")
                palette_image(mask).save(masks / f"{name}.png")
                (annotations / f"{name}.xml").write_text(self._annotation(name, mask))
            (lists / f"{part}.txt").write_text("\n".join(names) + "\n")

    def _save(self, image: NDArray[np.uint8], path: Path) -> None:
        # Colour at full resolution: halving it would let it run over the shapes' edges.
        Image.fromarray(image).save(path, quality=95, subsampling=0)

    def _annotation(self, name: str, mask: NDArray[np.uint8]) -> str:
        """VOC's XML: size, and name and 1-based box of each class's pixels."""
        objects = ""
        for value in np.unique(mask[mask > 0]):
            rows, columns = np.nonzero(mask == value)
            corners = {"xmin": columns.min(), "ymin": rows.min(), "xmax": columns.max(), "ymax": rows.max()}
            box = "".join(f"<{key}>{int(place) + 1}</{key}>" for key, place in corners.items())
            name_of = self.class_names[value - 1]
            objects += f"  <object><name>{name_of}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>\n"
        size = f"<width>{self.side}</width><height>{self.side}</height><depth>3</depth>"
        return f"<annotation>\n  <filename>{name}.jpg</filename>\n  <size>{size}</size>\n{objects}</annotation>\n"


def inside(name: str, u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a shape is, in coordinates in which it fits into the circle of radius 1 around (0, 0)."""
    radius = np.hypot(u, v)
    if name == "circle":
        return radius <= 0.9
    if name == "ring":
        return (radius <= 1) & (radius >= 0.55)
    if name == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.7
    if name == "triangle":  # equilateral: three half-planes at the distance 1/2
        return np.maximum(v, np.abs(u) * np.sqrt(3) / 2 - v / 2) <= 0.5
    near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return (near <= 0.3) & (far <= 0.95)  # a cross


class ColouredShapesReader(COCO2014Reader):
    """Generates the files where they are not there yet, then reads the unlabelled ones as COCO 2014.

    Args:
        shapes: what is generated.
        val_count: see `COCO2014Reader`; the other held-out photographs judge.
        split_seed: see `COCO2014Reader`.
    """

    instructions = "the files are generated there when the run prepares its data"

    def __init__(self, shapes: ColouredShapes, val_count: int, split_seed: int) -> None:
        super().__init__(val_count, shapes.held_out - val_count, split_seed)
        self.shapes = shapes

    def prepare(self, root: Path) -> None:
        self.shapes.write(root)


class ColouredShapesVOCReader(VOCReader):
    """Generates the files where they are not there yet, then reads the labelled ones as VOC.

    Args:
        masks_folder: see `VOCReader`.
        shapes: what is generated.
    """

    instructions = "the files are generated there when the run prepares its data"

    def __init__(self, masks_folder: str, shapes: ColouredShapes) -> None:
        super().__init__(masks_folder)
        self.shapes = shapes

    def prepare(self, root: Path) -> None:
        self.shapes.write(root)
