"""Berkeley's segmentation data on disk: photographs, human maps, boundary hierarchies and superpixel files."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from datamodules.photograph_files import IMAGE_SUFFIXES
from runs.errors import InputError, did_you_mean, first_few


@dataclass(frozen=True)
class BSDSImage:
    """One photograph and the files that belong to it.

    Attributes:
        name: its id ("2018"), or its file name where there are no ids.
        image: its file.
        human: files of human maps; empty where there are none.
        ucm2: file of its boundary hierarchy, which need not exist; None in a layout without.
    """

    name: str
    image: Path
    human: tuple[Path, ...]
    ucm2: Path | None

    @property
    def id(self) -> str:
        """What files of superpixels are named after."""
        return Path(self.name).stem


class BSDSReader(Protocol):
    """An on-disk layout."""

    instructions: str  # where to get the data and what the folder must look like

    def prepare(self, root: Path) -> None:
        """Makes the data where they can be made."""
        ...

    def images(self, root: Path, splits: Sequence[str]) -> list[BSDSImage]:
        """The photographs of some splits, in their order; raises InputError where a split is missing."""
        ...

    def human_maps(self, image: BSDSImage) -> list[NDArray[np.int64]]:
        """The human maps (H, W) of a photograph; raises InputError where a file is broken."""
        ...


class BSDS500Reader:
    """``<root>/BSDS500`` with ``data/images/<split>/<id>.jpg``, ``data/groundTruth/<split>/<id>.mat``, ``ucm2/…``.

    ``root`` may be the folder BSDS500 itself. Ground truth and ucm2 may be absent.
    """

    instructions = (
        "it must hold BSDS500/data/images/<split>/<id>.jpg and, to score, BSDS500/data/groundTruth/<split>/<id>.mat, "
        "as the archive of BSDS500 unpacks (www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping)"
    )

    def prepare(self, root: Path) -> None:
        """Nothing: the archive is unpacked by the user."""

    def images(self, root: Path, splits: Sequence[str]) -> list[BSDSImage]:
        """Lists the photographs of train, val or test.

        Raises:
            InputError: a split is missing or holds no photograph.
        """
        top = root if (root / "data" / "images").is_dir() else root / "BSDS500"
        found = []
        for split in splits:
            for path in _photographs(top / "data" / "images", split, self.instructions):
                human = top / "data" / "groundTruth" / split / f"{path.stem}.mat"
                ucm2 = top / "ucm2" / split / f"{path.stem}.mat"
                found.append(BSDSImage(path.stem, path, (human,) if human.is_file() else (), ucm2))
        return found

    def human_maps(self, image: BSDSImage) -> list[NDArray[np.int64]]:
        return [labels for path in image.human for labels in read_ground_truth(path)]


class BSDS300Reader:
    """``<root>/BSDS300`` with ``images/{train,test}/<id>.jpg`` and ``human/{color,gray}/<user>/<id>.seg``.

    ``root`` may be the folder BSDS300 itself. The same images are train and val of BSDS500.

    Args:
        human: the maps that people drew on colour pictures, on grey ones, or all.
    """

    instructions = (
        "it must hold BSDS300/images/{train,test}/<id>.jpg and, to score, BSDS300/human/{color,gray}/<user>/<id>.seg, "
        "as the two archives of BSDS300 unpack (www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds)"
    )

    def __init__(self, human: Literal["color", "gray", "all"]) -> None:
        self.human = human

    def prepare(self, root: Path) -> None:
        """Nothing: the archives are unpacked by the user."""

    def images(self, root: Path, splits: Sequence[str]) -> list[BSDSImage]:
        """Lists the photographs of train or test.

        Raises:
            InputError: a split is missing or holds no photograph.
        """
        top = root if (root / "images").is_dir() else root / "BSDS300"
        kinds = ("color", "gray") if self.human == "all" else (self.human,)
        maps: dict[str, list[Path]] = {}
        for kind in kinds:
            for path in sorted((top / "human" / kind).glob("*/*.seg")):
                maps.setdefault(path.stem, []).append(path)
        return [
            BSDSImage(path.stem, path, tuple(maps.get(path.stem, ())), None)
            for split in splits
            for path in _photographs(top / "images", split, self.instructions)
        ]

    def human_maps(self, image: BSDSImage) -> list[NDArray[np.int64]]:
        return [read_seg(path) for path in image.human]


class PhotographFolderReader:
    """Any folder of photographs, folders below it included; there are no human maps."""

    instructions = "it must hold photographs"

    def prepare(self, root: Path) -> None:
        """Nothing: these are the user's files."""

    def images(self, root: Path, splits: Sequence[str]) -> list[BSDSImage]:
        """All photographs by their names; there are no splits.

        Raises:
            InputError: there is none.
        """
        paths = [path for path in sorted(root.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
        if not paths:
            raise InputError(f"{root} holds no photograph ({', '.join(IMAGE_SUFFIXES)})")
        return [BSDSImage(path.relative_to(root).as_posix(), path, (), None) for path in paths]

    def human_maps(self, image: BSDSImage) -> list[NDArray[np.int64]]:
        return []


def _photographs(folder: Path, split: str, instructions: str) -> list[Path]:
    """The JPEG files of a split, by rising id."""
    if not (folder / split).is_dir():
        there = [path.name for path in folder.glob("*") if path.is_dir()]
        hint = did_you_mean(split, there) if there else instructions
        raise InputError(f"there is no split {folder / split}: {hint}")
    paths = sorted((folder / split).glob("*.jpg"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise InputError(f"{folder / split} holds no photograph (<id>.jpg): {instructions}")
    return paths


def chosen(images: list[BSDSImage], names: Sequence[str | int] | None, limit: int | None) -> list[BSDSImage]:
    """Those of the given names in the order given, or all; of these the first ``limit``.

    Raises:
        InputError: a name that is not there, one that occurs twice, or a limit below 1.
    """
    by_name = {image.name: image for image in images}
    if len(by_name) < len(images):
        names_of_all = [image.name for image in images]
        twice = sorted({name for name in names_of_all if names_of_all.count(name) > 1})
        raise InputError(
            f"{len(twice)} images are in more than one of data.splits: {first_few(twice)}; each may be in one"
        )
    if names is not None:
        wanted = [str(name) for name in names]
        missing = [name for name in wanted if name not in by_name]
        if missing:
            raise InputError(
                f"data.images: {len(missing)} of {len(wanted)} are not in the data: {first_few(missing)}; "
                f"{did_you_mean(missing[0], by_name)}"
            )
        if len(set(wanted)) < len(wanted) or not wanted:
            raise InputError(f"data.images={wanted} must name one image or more, each once")
        images = [by_name[name] for name in wanted]
    if limit is not None and limit < 1:
        raise InputError(f"data.limit={limit} leaves no image: give 1 or more, or null")
    return images[:limit]


def read_ground_truth(path: Path) -> list[NDArray[np.int64]]:
    """The human maps of a BSDS500 file: cell ``groundTruth`` of structs with ``Segmentation`` (H, W).

    Raises:
        InputError: the file is broken, or holds something else.
    """
    cells = _variable(path, "groundTruth")
    try:
        maps = [cell["Segmentation"][0, 0] for cell in cells.ravel()]
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: groundTruth is no cell of structs with the field Segmentation, as BSDS500 has it ({error})"
        ) from error
    if not maps:
        raise InputError(f"{path}: groundTruth holds no human map: it must hold one or more")
    return [_whole_numbers(labels, path, "Segmentation") for labels in maps]


def read_superpixels(path: Path) -> NDArray[np.int64]:
    """Superpixels (H, W) of a file with the variable ``seg_lab``, as the authors of DIC supply them.

    Raises:
        InputError: the file is missing or broken, or holds something else.
    """
    return _whole_numbers(_variable(path, "seg_lab"), path, "seg_lab")


def read_ucm2(path: Path) -> NDArray[np.float64]:
    """Boundary strengths (2H+1, 2W+1) of a file with the variable ``ucm2``.

    Raises:
        InputError: the file is missing or broken, or its size is not odd.
    """
    ucm2 = _variable(path, "ucm2")
    if ucm2.ndim != 2 or not all(length % 2 for length in ucm2.shape) or min(ucm2.shape) < 3:
        raise InputError(
            f"{path}: ucm2 has the shape {ucm2.shape}; that of an image of H rows and W columns has 2H+1 and 2W+1"
        )
    return ucm2.astype(np.float64)


_SEG_NUMBERS = ("width", "height", "segments", "invert", "flipflop")


def read_seg(path: Path) -> NDArray[np.int64]:
    """A human map (H, W) of a BSDS300 file, labels from 0.

    The file is text: a header, then a run of pixels in each line: ``segment row first_column last_column``, all
    counted from 0.

    Raises:
        InputError: no such file format, runs outside the image, or pixels in no run or in several.
    """
    try:
        head, separator, body = path.read_text(encoding="ascii").partition("\ndata")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a segmentation file of BSDS300: {error}") from error
    facts = dict(re.findall(r"^(\w+)[ \t]+(.*\S)", head, flags=re.MULTILINE))
    wrong = [key for key in _SEG_NUMBERS if not facts.get(key, "").isdigit()]
    if not separator or facts.get("format") != "ascii cr" or wrong:
        raise InputError(
            f"{path} is no segmentation file of BSDS300: its header must say 'format ascii cr' and give whole numbers "
            f"for {', '.join(_SEG_NUMBERS)} before 'data'"
        )
    if int(facts["flipflop"]):
        raise InputError(f"{path} was drawn on a mirrored picture (flipflop {facts['flipflop']}): leave it out")
    height, width, segments = int(facts["height"]), int(facts["width"]), int(facts["segments"])
    try:
        runs = np.array(body.split(), dtype=np.int64).reshape(-1, 4)
    except ValueError as error:
        raise InputError(f"{path}: the lines after 'data' must have four whole numbers each") from error
    segment, row, first, last = runs.T
    inside = (segment >= 0) & (segment < segments) & (row >= 0) & (row < height)
    inside &= (first >= 0) & (first <= last) & (last < width)
    if not inside.all():
        raise InputError(
            f"{path}: {int((~inside).sum())} runs do not fit {segments} segments of {height}x{width} pixels (rows x "
            f"columns), for example {runs[~inside][0].tolist()}"
        )
    lengths = last - first + 1
    starts = row * width + first
    # Every pixel of every run: the run's start, and the place within the run.
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    pixels = np.repeat(starts, lengths) + within
    times = np.bincount(pixels, minlength=height * width)
    if not (times == 1).all():
        raise InputError(
            f"{path}: {int((times == 0).sum())} pixels are in no run and {int((times > 1).sum())} in several: each "
            "pixel must be in one"
        )
    labels = np.empty(height * width, np.int64)
    labels[pixels] = np.repeat(segment, lengths)
    return labels.reshape(height, width)


def _variable(path: Path, name: str) -> Any:
    """A variable of a MATLAB file."""
    content = _content(path)
    if name not in content:
        there = [key for key in content if not key.startswith("__")]
        raise InputError(f"{path} has no variable '{name}' but {first_few(there) or 'none'}")
    return content[name]


def _content(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no {path}")
    try:
        return loadmat(path)
    except NotImplementedError as error:  # MATLAB 7.3 is HDF5
        raise InputError(f"{path} is a file of MATLAB 7.3: save it with the option -v7") from error
    except Exception as error:  # whatever a broken file makes the parser stumble over
        raise InputError(f"{path} cannot be read as a MATLAB file ({error}): replace it") from error


def _whole_numbers(values: Any, path: Path, name: str) -> NDArray[np.int64]:
    labels = np.asarray(values)
    if labels.ndim != 2 or labels.dtype.kind not in "iubf" or (labels.dtype.kind == "f" and (labels % 1).any()):
        raise InputError(f"{path}: {name} must be a map (rows, columns) of whole numbers")
    return labels.astype(np.int64)
