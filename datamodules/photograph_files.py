"""Photographs on disk: lists of them in Pascal VOC's layout or in a user's own folder, and how one is read."""

import os
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.csv_rows import read_csv_rows
from datamodules.folder import existing_folder
from runs.errors import InputError, did_you_mean, first_few

Result = TypeVar("Result")
LISTS = ("train", "val")  # of a table of one's own
DEEP_MODES = ("I", "F")  # Pillow's, of 32 bits a pixel
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Photograph:
    """One image of a list.

    Attributes:
        name: of the image, a string in VOC too ("000000000086").
        image: its file.
        classes: what it shows.
        mask: file of its true mask, for scoring; None where there is none.
    """

    name: str
    image: Path
    classes: tuple[str, ...]
    mask: Path | None


class PhotographReader(Protocol):
    """An on-disk layout."""

    instructions: str  # where to get the data and what the folder must look like

    def prepare(self, root: Path) -> None:
        """Makes the data where they can be made."""
        ...

    def read(self, root: Path, list_name: str) -> list[Photograph]:
        """The photographs of a list, in its order; raises InputError where files are missing or broken."""
        ...


class VOCReader:
    """``<root>/VOCdevkit/VOC2012`` with JPEGImages, Annotations, ImageSets/Segmentation and, to score, masks.

    Image labels come from the XML files: every object, difficult ones included.

    Args:
        masks_folder: folder of the true masks: ``SegmentationClass``, or ``SegmentationClassAug`` for
            the 10 582 images of trainaug. It may be absent: then nothing is scored.
    """

    instructions = (
        "it must hold VOCdevkit/VOC2012 with JPEGImages, Annotations and ImageSets/Segmentation, as the "
        "archive of Pascal VOC 2012 unpacks (host.robots.ox.ac.uk/pascal/VOC)"
    )

    def __init__(self, masks_folder: str) -> None:
        self.masks_folder = masks_folder

    def prepare(self, root: Path) -> None:
        """Nothing: VOC is unpacked by the user."""

    def read(self, root: Path, list_name: str) -> list[Photograph]:
        """Reads a list, looks for its files, reads the labels.

        Raises:
            InputError: naming the list, and images or XML files that are missing or broken.
        """
        folder = root / "VOCdevkit" / "VOC2012"
        lists = folder / "ImageSets" / "Segmentation"
        path = lists / f"{list_name}.txt"
        if not path.is_file():
            there = [file.stem for file in lists.glob("*.txt")]
            hint = " (trainaug needs the list of the SBD extension)" if list_name == "trainaug" else ""
            raise InputError(f"there is no list {path}{hint}: {did_you_mean(list_name, there)}")
        names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        for kind, pattern in (("image", "JPEGImages/{}.jpg"), ("XML file", "Annotations/{}.xml")):
            missing = [pattern.format(name) for name in names if not (folder / pattern.format(name)).is_file()]
            if missing:
                raise InputError(
                    f"{len(missing)} of {len(names)} {kind}s of the list {path} are missing below {folder}: "
                    f"{first_few(missing)}"
                )
        masks = folder / self.masks_folder
        return [
            Photograph(
                name,
                folder / "JPEGImages" / f"{name}.jpg",
                classes_of(folder / "Annotations" / f"{name}.xml"),
                masks / f"{name}.png" if (masks / f"{name}.png").is_file() else None,
            )
            for name in names
        ]


def classes_of(path: Path) -> tuple[str, ...]:
    """The classes of an XML file, each once, in the order of its objects; difficult ones included.

    Raises:
        InputError: it is no XML.
    """
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except ElementTree.ParseError as error:
        raise InputError(f"{path} cannot be read as XML: {error}") from error
    return tuple(dict.fromkeys((o.findtext("name") or "").strip() for o in objects))


class LabelledFolderReader:
    """Your own data: ``<root>/images/<file>``, ``<root>/labels.csv`` and, to score, ``<root>/masks/<stem>.png``.

    ``labels.csv`` has the columns ``image`` (file name below images), ``labels`` (class names with a
    semicolon between them, or nothing) and ``list`` (``train`` or ``val``).

    Args:
        masks_folder: folder of the true masks; it may be absent.
    """

    instructions = (
        "it must hold images/ and labels.csv with the columns image, labels (class names with ';' between them) "
        "and list (train or val)"
    )

    def __init__(self, masks_folder: str) -> None:
        self.masks_folder = masks_folder

    def prepare(self, root: Path) -> None:
        """Nothing: these are the user's files."""

    def read(self, root: Path, list_name: str) -> list[Photograph]:
        """Reads the rows of a list.

        Raises:
            InputError: the table, a column, cells of a row or images are missing, or it is not UTF-8.
        """
        path = root / "labels.csv"
        if not path.is_file():
            raise InputError(f"there is no {path}: {self.instructions}")
        rows = [row for row in self._table(path) if row["list"] == list_name]
        gone = [row["image"] for row in rows if not (root / "images" / row["image"]).is_file()]
        if gone:
            raise InputError(
                f"{len(gone)} of {len(rows)} images of list {list_name} in {path} are missing below "
                f"{root / 'images'}: {first_few(gone)}"
            )
        photographs = []
        for row in rows:
            mask = root / self.masks_folder / Path(row["image"]).with_suffix(".png")
            classes = dict.fromkeys(name.strip() for name in row["labels"].split(";") if name.strip())
            image = root / "images" / row["image"]
            photographs.append(Photograph(row["image"], image, tuple(classes), mask if mask.is_file() else None))
        return photographs

    def _table(self, path: Path) -> list[dict[str, str]]:
        """All rows by column."""
        try:
            rows = read_csv_rows(path)
        except InputError as error:
            raise InputError(f"{error} (class names have ';' between them, not ',')") from error
        for name in ("image", "labels", "list"):
            if name not in rows.columns:
                raise InputError(f"{path} has no column {name} but {first_few(rows.columns)}: {self.instructions}")
        table = [dict(zip(rows.columns, cells, strict=True)) for cells in rows.cells]
        for row, line in zip(table, rows.lines, strict=True):
            if row["list"] not in LISTS:
                raise InputError(f"line {line} of {path}: there is no list '{row['list']}': write train or val")
        return table


class PhotographsToPredict(Dataset):
    """The pictures of a folder."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = open_photograph(self.folder / self.names[index])
        return {"image": as_tensor(np.asarray(picture)), "index": index, "name": self.names[index]}


def check_class_count(class_names: list[str], num_classes: int) -> None:
    """Refuses another number of names than of classes.

    Raises:
        InputError: they differ.
    """
    if len(class_names) != num_classes:
        raise InputError(
            f"data.num_classes={num_classes} but data.class_names lists {len(class_names)} names: name your "
            f"classes by data.class_names=[…], or set data.num_classes={len(class_names)}"
        )


def find_pictures(folder: Path | None) -> PhotographsToPredict:
    """The readable pictures of a folder and of all below it, sorted by name.

    Raises:
        InputError: no folder is given, or it is none; it holds no picture, or one that cannot be read.
    """
    folder = existing_folder(folder, "data.predict_root", "name the folder of the pictures to predict")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not names:
        raise InputError(f"data.predict_root={folder} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    sizes_of({name: folder / name for name in names}, "pictures", str(folder))
    return PhotographsToPredict(folder, names)


def open_photograph(path: Path) -> Image.Image:
    """An image file as RGB, turned as its EXIF tag says; grey ones become three equal channels.

    Of 16 bits the upper 8 are kept, as Pillow itself does with three channels.

    Raises:
        InputError: it cannot be decoded, or it has more than 16 bits.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode.startswith("I;16"):
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            elif picture.mode in DEEP_MODES:
                raise InputError(f"the image {path} has 32 bits a pixel: save it with 8 or 16 bits for each channel")
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(f"the image {path} cannot be read ({error}): replace it, or take it off its list") from error


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to (3, H, W) uint8."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))


def multi_hot(photograph: Photograph, class_names: Sequence[str]) -> Tensor:
    """(C,) float32: 1 for each class that the image shows; all 0 for an image without label."""
    return torch.tensor([float(name in photograph.classes) for name in class_names])


def sizes_of(files: dict[str, Path], kind: str, source: str) -> dict[str, tuple[int, int]]:
    """Width and height of each photograph as it is read; names all that cannot be.

    10 000 files take some seconds: a JPEG is decoded only where its end is not found.
    """
    with warnings.catch_warnings():  # here and not in the threads, which share the filters
        warnings.simplefilter("ignore")
        sizes = of_each(_size, files)
    broken = [name for name, size in sizes.items() if size is None]
    if broken:
        raise InputError(f"{len(broken)} of {len(files)} {kind} of {source} cannot be read: {first_few(broken)}")
    return {name: size for name, size in sizes.items() if size is not None}


def _size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as picture:
            if picture.format != "JPEG" or not _ends_as_jpeg(path):
                picture.load()  # a PNG's EXIF tag, too, may stand behind the pixels
            # From 5 on an orientation swaps width and height.
            sideways = picture.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return picture.size[::-1] if sideways else picture.size
    except (OSError, UnidentifiedImageError, SyntaxError):
        return None


def _ends_as_jpeg(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip(b"\0\r\n ").endswith(b"\xff\xd9")


def of_each(job: Callable[[Path], Result], files: dict[str, Path]) -> dict[str, Result]:
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(job, files.values()), strict=True))
