"""Files of rectified stereo pairs: images, PFM and 16-bit disparities, and the layouts of four datasets."""

import re
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from runs.errors import InputError, first_few

GREY = (0.299, 0.587, 0.114)  # of red, green, blue; ITU-R BT.601
PNG_DEPTH = 24  # byte of the header that gives the bits of a channel
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")


@dataclass(frozen=True)
class PairFiles:
    """Where one pair lies; what a layout does not have, or a user has not got, is None.

    Attributes:
        name: unique in its dataset, with ``/`` between folders.
        left: the reference image.
        right: its partner.
        truth: disparities of the left image.
        visible: mask of the pixels that the right image sees too.
        extent: text file with the range of disparities.
    """

    name: str
    left: Path
    right: Path
    truth: Path | None = None
    visible: Path | None = None
    extent: Path | None = None


class StereoReader(ABC):
    """One layout on disk.

    Args:
        visible_only: leave pixels that the right image does not see out of the truth.
    """

    instructions: str  # how to get the data

    def __init__(self, visible_only: bool) -> None:
        self.visible_only = visible_only

    def prepare(self, root: Path) -> None:  # noqa: B027 - for readers that make their data
        """The archive is the user's to fetch."""

    @abstractmethod
    def pairs(self, root: Path) -> list[PairFiles]:
        """All pairs below ``root``, by name.

        Raises:
            InputError: nothing is there, or an image has no partner.
        """

    def extent(self, files: PairFiles) -> tuple[float, float] | None:
        """Least and most disparity of a pair in pixels, or None where the layout does not say."""
        return None

    def truth(self, files: PairFiles) -> np.ndarray | None:
        """True disparities (H, W) float32, NaN where unknown; None without truth."""
        return None

    def _found(self, pairs: list[PairFiles], root: Path) -> list[PairFiles]:
        if not pairs:
            raise InputError(f"data.root={root} holds no stereo pair: {self.instructions}")
        check_partners(pairs)
        return pairs


class Middlebury2014(StereoReader):
    """``training<resolution>/<scene>/{im0,im1}.png, disp0GT.pfm, mask0nocc.png, calib.txt`` (Scharstein et al. 2014).

    Args:
        resolution: Q, H or F.
        visible_only: score non-occluded pixels alone; needs ``mask0nocc.png``.
    """

    instructions = (
        "get MiddEval3-data-<Q|H|F>.zip and MiddEval3-GT0-<Q|H|F>.zip from https://vision.middlebury.edu/stereo/submit3"
        " and set data.root to the folder that holds training<Q|H|F>/<scene>/im0.png"
    )

    def __init__(self, resolution: str, visible_only: bool) -> None:
        super().__init__(visible_only)
        self.resolution = resolution

    def pairs(self, root: Path) -> list[PairFiles]:
        scenes = sorted(path.parent for path in (root / f"training{self.resolution}").glob("*/im0.png"))
        pairs = [
            PairFiles(
                name=scene.name,
                left=scene / "im0.png",
                right=scene / "im1.png",
                truth=_if_there(scene / "disp0GT.pfm"),
                visible=scene / "mask0nocc.png",
                extent=_if_there(scene / "calib.txt"),
            )
            for scene in scenes
        ]
        return self._found(pairs, root)

    def extent(self, files: PairFiles) -> tuple[float, float] | None:
        """0 to ndisp - 1: ndisp is the number of disparities."""
        if files.extent is None:
            return None
        match = re.search(r"^ndisp=(\d+)\s*$", files.extent.read_text(), re.MULTILINE)
        if match is None:
            raise InputError(f"{files.extent} has no line ndisp=<number of disparities>")
        return 0.0, int(match[1]) - 1.0

    def truth(self, files: PairFiles) -> np.ndarray | None:
        if files.truth is None:
            return None
        truth = read_pfm(files.truth)
        truth[~np.isfinite(truth)] = np.nan
        if self.visible_only:
            truth[_mask(files.visible, truth.shape) != 255] = np.nan  # 128: occluded
        return truth


class Kitti2015(StereoReader):
    """``training/{image_2,image_3}/NNNNNN_10.png, disp_{occ,noc}_0/NNNNNN_10.png`` (Menze and Geiger 2015).

    Args:
        visible_only: read ``disp_noc_0`` instead of ``disp_occ_0``.
    """

    instructions = (
        "get data_scene_flow.zip from https://www.cvlibs.net/datasets/kitti and set data.root to the folder "
        "that holds training/image_2/000000_10.png"
    )

    def pairs(self, root: Path) -> list[PairFiles]:
        folder = root / "training"
        disparities = folder / ("disp_noc_0" if self.visible_only else "disp_occ_0")
        pairs = [
            PairFiles(left.stem, left, folder / "image_3" / left.name, truth=_if_there(disparities / left.name))
            for left in sorted((folder / "image_2").glob("*_10.png"))
        ]
        return self._found(pairs, root)

    def truth(self, files: PairFiles) -> np.ndarray | None:
        return None if files.truth is None else read_disparity_png(files.truth)


class DFC2019(StereoReader):
    """``<aoi>_<i>_<j>_{LEFT,RIGHT}_RGB.tif, ..._LEFT_DSP.tif`` of track 2 (float32, -999 where unknown).

    Subfolders are searched; the truth may lie in another one than the images, as in the archives.
    """

    instructions = (
        "get the track 2 training archives of the 2019 data fusion contest from https://dx.doi.org/10.21227/c6tm-vw12 "
        "and set data.root to the folder that holds JAX_*_LEFT_RGB.tif and JAX_*_LEFT_DSP.tif"
    )
    unknown = -999.0

    def pairs(self, root: Path) -> list[PairFiles]:
        truths = {path.name: path for path in root.rglob("*_LEFT_DSP.tif")}
        pairs = []
        for left in sorted(root.rglob("*_LEFT_RGB.tif")):
            stem = left.name.removesuffix("_LEFT_RGB.tif")
            pairs.append(
                PairFiles(stem, left, left.with_name(f"{stem}_RIGHT_RGB.tif"), truth=truths.get(f"{stem}_LEFT_DSP.tif"))
            )
        return self._found(pairs, root)

    def truth(self, files: PairFiles) -> np.ndarray | None:
        if files.truth is None:
            return None
        truth = _pixels(files.truth).astype(np.float32)
        truth[truth == self.unknown] = np.nan
        return truth


class S2PTiles(StereoReader):
    """``im_left/<tile>, im_right/<tile>`` of one name; ``disp_minmax/<tile>.txt``: least and most disparity."""

    instructions = "set data.root to the folder that holds im_left/<tile>.tif and im_right/<tile>.tif (or .png)"

    def pairs(self, root: Path) -> list[PairFiles]:
        left, right = (
            {
                path.relative_to(folder).as_posix(): path
                for path in sorted(folder.rglob("*"))
                if path.suffix.lower() in IMAGE_SUFFIXES
            }
            for folder in (root / "im_left", root / "im_right")
        )
        pairs = []
        for name in sorted({*left, *right}):
            stem = Path(name).with_suffix("")
            pairs.append(
                PairFiles(
                    name,
                    left.get(name, root / "im_left" / name),
                    right.get(name, root / "im_right" / name),
                    extent=_if_there((root / "disp_minmax" / stem).with_suffix(".txt")),
                )
            )
        return self._found(pairs, root)

    def extent(self, files: PairFiles) -> tuple[float, float] | None:
        if files.extent is None:
            return None
        try:
            low, high = (float(line) for line in files.extent.read_text().split())
        except ValueError:
            raise InputError(f"{files.extent} must hold two numbers, the least and the most disparity") from None
        if low > high:
            raise InputError(f"{files.extent} says {low:g} to {high:g}: the first line must be the least disparity")
        return low, high


def check_partners(pairs: list[PairFiles]) -> None:
    """Raises InputError, naming the first images without their partner."""
    missing = [path for files in pairs for path in (files.left, files.right) if not path.is_file()]
    if missing:
        raise InputError(
            f"every image needs its partner of the other camera: {first_few(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing"
        )


def read_grey(path: Path) -> np.ndarray:
    """An image as grey values (H, W) float32, in the file's own units; NaN stays.

    Raises:
        InputError: no image, or one of neither one nor three channels.
    """
    pixels = _pixels(path).astype(np.float32)
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        return pixels[..., :3] @ np.array(GREY, dtype=np.float32)
    if pixels.ndim == 3 and pixels.shape[-1] in (1, 2):  # grey, with or without transparency
        return pixels[..., 0]
    if pixels.ndim != 2:
        raise InputError(f"{path} has the shape {'x'.join(map(str, pixels.shape))}: give a grey or a colour image")
    return pixels


def read_disparity_png(path: Path) -> np.ndarray:
    """KITTI's disparities: uint16, value / 256, 0 = unknown; (H, W) float32 with NaN.

    Raises:
        InputError: the file does not have 16 bits, or is no image.
    """
    pixels = _pixels(path)
    if pixels.dtype.itemsize < 2 or pixels.ndim != 2:
        raise InputError(
            f"{path} has {pixels.dtype.itemsize * 8} bits a pixel: KITTI's disparities are 16-bit grey PNG"
        )
    return np.where(pixels == 0, np.nan, pixels / 256.0).astype(np.float32)


def read_pfm(path: Path) -> np.ndarray:
    """A grey PFM file (H, W) float32, first row on top; inf stays.

    Raises:
        InputError: its header is wrong, or it is cut short or too long.
    """
    with path.open("rb") as file:
        kind, sizes, scale = (file.readline().strip() for _ in range(3))
        if kind != b"Pf":
            raise InputError(f"{path} begins with {kind[:16]!r}: a grey PFM file begins with 'Pf'")
        match = re.fullmatch(rb"(\d+)\s+(\d+)", sizes)
        try:
            byte_order = "<" if float(scale) < 0 else ">"
        except ValueError:
            match = None
        if match is None:
            raise InputError(
                f"{path}: its header must give width, height and scale, found {sizes[:32]!r}, {scale[:32]!r}"
            )
        width, height = int(match[1]), int(match[2])
        content = file.read()
    if len(content) != 4 * width * height:
        raise InputError(
            f"{path} holds {len(content)} bytes of values where {width}x{height} pixels need {4 * width * height}"
        )
    return np.frombuffer(content, f"{byte_order}f4").reshape(height, width)[::-1].astype(np.float32)


def write_pfm(path: Path, values: np.ndarray) -> None:
    """Writes (H, W) values as a grey PFM file in this machine's byte order."""
    scale = "-1" if sys.byteorder == "little" else "1"
    header = f"Pf\n{values.shape[1]} {values.shape[0]}\n{scale}\n"
    path.write_bytes(header.encode() + np.ascontiguousarray(values[::-1], dtype=np.float32).tobytes())


def _pixels(path: Path) -> np.ndarray:
    """The file's values as they are, 16 bits and floats included."""
    try:
        if path.suffix.lower() in (".tif", ".tiff"):
            return _tiff_pixels(path)
        with Image.open(path) as image:
            if image.mode in ("P", "1"):
                image = image.convert("RGB")
            if image.format == "PNG" and image.mode in ("RGB", "RGBA") and path.read_bytes()[PNG_DEPTH] == 16:
                # Pillow would leave 8 of the 16 bits. Imported here: torchvision means to give its decoders away.
                from torchvision.io import ImageReadMode, decode_png, read_file

                return decode_png(read_file(str(path)), ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
            return np.asarray(image)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (UnidentifiedImageError, OSError, ValueError, RuntimeError, tifffile.TiffFileError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from None


def _tiff_pixels(path: Path) -> np.ndarray:
    """Bands last. Pillow reads what tifffile has no codec for, LZW for one, unless it would drop bits."""
    with tifffile.TiffFile(path) as file:
        first = file.series[0]
        try:
            pixels = file.asarray()
        except ValueError as error:
            try:
                with Image.open(path) as image:
                    pixels = np.asarray(image)
            except (UnidentifiedImageError, OSError):
                pixels = None
            if pixels is None or pixels.dtype.itemsize < first.dtype.itemsize:
                raise ValueError(f"{error}: install it, or save the file without compression") from None
            return pixels
    return np.moveaxis(pixels, 0, -1) if first.axes == "SYX" else pixels


def _mask(path: Path | None, shape: tuple[int, ...]) -> np.ndarray:
    if path is None or not path.is_file():
        raise InputError(f"data.reader.visible_only=true needs {path}: get it, or score all pixels with truth")
    mask = _pixels(path)
    if mask.shape != shape:
        raise InputError(f"{path} has {mask.shape} pixels where the truth has {shape}")
    return mask


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
