"""Images with and without defects on disk: the official layouts, and a user's own folders, as lists of files."""

import csv
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from datamodules.csv_rows import read_csv_rows
from datamodules.photograph_files import IMAGE_SUFFIXES
from datamodules.plain_pickle import read_plain_pickle
from runs.errors import InputError, did_you_mean, first_few

Regime = Literal["unsupervised", "supervised"]


@dataclass(frozen=True)
class AnomalyImage:
    """One image of a list.

    Attributes:
        name: relative to the root.
        image: its file.
        defective: its label.
        mask: file of its defects; None where there is none, or the image has none.
        group: images of one object, which must not be parted; its own name where objects are not known.
    """

    name: str
    image: Path
    defective: bool
    mask: Path | None
    group: str = ""


@dataclass(frozen=True)
class Splits:
    """The lists of a data set: to train on, to set thresholds by, to be judged on."""

    train: list[AnomalyImage]
    test: list[AnomalyImage]
    val: list[AnomalyImage] = field(default_factory=list)


class AnomalyReader(Protocol):
    """An on-disk layout.

    Attributes:
        instructions: where to get the data and what the folder must look like.
        mask_above: a mask's pixel is a defect where its 8-bit value is above this.
        mixed_training: whether defective images belong to the training list; unsupervised training
            leaves them out. Elsewhere one that lies there is an error.
    """

    instructions: str
    mask_above: int
    mixed_training: bool

    def prepare(self, root: Path) -> None:
        """Makes the data where they can be made."""
        ...

    def read(self, root: Path, category: str | None, fold: int | None, regime: Regime) -> Splits:
        """The lists; raises InputError where files are missing or broken."""
        ...


class _UnpackedByTheUser:
    def prepare(self, root: Path) -> None:
        """Nothing: the user unpacks the archive."""


class MVTecADReader(_UnpackedByTheUser):
    """MVTec AD: ``<category>/train/good``, ``test/<good or defect>``, ``ground_truth/<defect>/<stem>_mask.png``."""

    instructions = (
        "it must hold <category>/train/good, <category>/test and <category>/ground_truth, as the archive of MVTec AD "
        "unpacks (mvtec.com/company/research/datasets/mvtec-ad)"
    )
    mask_above = 127
    mixed_training = False

    def read(self, root: Path, category: str | None, fold: int | None, regime: Regime) -> Splits:
        refuse_fold(fold, "MVTec AD")
        folder = root / chosen_category(root, category, lambda path: (path / "train").is_dir())
        lists = {}
        for part in ("train", "test"):
            lists[part] = [
                AnomalyImage(
                    path.relative_to(root).as_posix(),
                    path,
                    path.parent.name != "good",
                    self._mask(folder, path),
                )
                for path in pictures_below(folder / part)
            ]
        return Splits(**lists)

    def _mask(self, folder: Path, image: Path) -> Path | None:
        mask = folder / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
        return mask if image.parent.name != "good" and mask.is_file() else None


class VisaReader(_UnpackedByTheUser):
    """VisA as distributed, split by ``split_csv/1cls.csv``; or converted, ``visa_pytorch/<category>/{train,test}``.

    Masks hold small class numbers: any value above 0 is a defect.
    """

    instructions = (
        "it must hold <category>/Data/Images, <category>/Data/Masks and split_csv/1cls.csv, as the archive of VisA "
        "unpacks (github.com/amazon-science/spot-diff), or visa_pytorch/<category>/{train,test,ground_truth}"
    )
    mask_above = 0
    mixed_training = False

    def read(self, root: Path, category: str | None, fold: int | None, regime: Regime) -> Splits:
        refuse_fold(fold, "VisA")
        table = root / "split_csv" / "1cls.csv"
        if table.is_file():
            return self._from_table(root, table, category)
        converted = root / "visa_pytorch" if (root / "visa_pytorch").is_dir() else root
        name = chosen_category(converted, category, lambda path: (path / "train").is_dir() or (path / "Data").is_dir())
        if not (converted / name / "train").is_dir():
            raise InputError(
                f"there is no {table}: without it nobody knows which images of {name} are for training; "
                f"{self.instructions}"
            )
        return self._converted(root, converted / name)

    def _from_table(self, root: Path, table: Path, category: str | None) -> Splits:
        rows = read_csv_rows(table)
        columns = ("object", "split", "label", "image", "mask")
        places = [rows.place(column, "VisA's own name") for column in columns]
        named = [dict(zip(columns, (cells[place] for place in places), strict=True)) for cells in rows.cells]
        known = sorted({row["object"] for row in named})
        if category not in known:
            raise InputError(
                f"data.category={category}: {table} has no such object: {did_you_mean(str(category), known)}"
            )
        lists: dict[str, list[AnomalyImage]] = {"train": [], "test": []}
        for row, line in zip(named, rows.lines, strict=True):
            if row["object"] != category:
                continue
            if row["split"] not in lists or row["label"] not in ("normal", "anomaly"):
                raise InputError(
                    f"line {line} of {table}: split {row['split']} and label {row['label']} must be train or test, "
                    "and normal or anomaly"
                )
            mask = root / row["mask"] if row["mask"] else None
            lists[row["split"]].append(AnomalyImage(row["image"], root / row["image"], row["label"] == "anomaly", mask))
        return Splits(**lists)

    def _converted(self, root: Path, folder: Path) -> Splits:
        lists = {}
        for part in ("train", "test"):
            images = []
            for path in pictures_below(folder / part):
                defective = path.parent.name != "good"
                mask = folder / "ground_truth" / path.parent.name / f"{path.stem}.png"
                images.append(
                    AnomalyImage(
                        path.relative_to(root).as_posix(),
                        path,
                        defective,
                        mask if defective and mask.is_file() else None,
                    )
                )
            lists[part] = images
        return Splits(**lists)


class KSDD2Reader(_UnpackedByTheUser):
    """KolektorSDD2: ``train/<id>.png`` beside ``train/<id>_GT.png``, ``test/`` alike; a mask with pixels is a defect.

    Args:
        split_file: the official list of annotated images, for example ``split_246.pyb`` in the root: training takes
            its images alone, masks only of those that it calls annotated. None: all of the folder, all masks.
        val_split: share of the training images, of each label, kept back to set thresholds by.
        split_seed: seed of that choice.
    """

    instructions = (
        "it must hold train/<id>.png with train/<id>_GT.png, and test/ alike, as the archive of KolektorSDD2 unpacks "
        "(vicos.si/resources/kolektorsdd2)"
    )
    mask_above = 127
    mixed_training = True

    def __init__(self, split_file: str | None, val_split: float, split_seed: int) -> None:
        self.split_file, self.val_split, self.split_seed = split_file, val_split, split_seed

    def read(self, root: Path, category: str | None, fold: int | None, regime: Regime) -> Splits:
        refuse_category(category, "KolektorSDD2")
        refuse_fold(fold, "KolektorSDD2")
        lists = {part: self._folder(root, part) for part in ("train", "test")}
        if self.split_file is not None:
            lists["train"] = self._listed(root, lists["train"])
        train, val = hold_out(lists["train"], self.val_split, self.split_seed)
        return Splits(train, lists["test"], val)

    def _folder(self, root: Path, part: str) -> list[AnomalyImage]:
        files = [path for path in pictures_below(root / part) if not path.stem.endswith("_GT")]
        masks = {path: path.with_name(f"{path.stem}_GT.png") for path in files}
        missing = [f"{part}/{path.name}" for path, mask in masks.items() if not mask.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(files)} images below {root} have no mask <id>_GT.png, which says whether they "
                f"are defective: {first_few(missing)}"
            )
        images = []
        for path, mask in masks.items():
            defective = bool(read_defects(mask, self.mask_above).any())
            images.append(AnomalyImage(f"{part}/{path.name}", path, defective, mask if defective else None))
        return images

    def _listed(self, root: Path, images: list[AnomalyImage]) -> list[AnomalyImage]:
        path = root / str(self.split_file)
        content = read_plain_pickle(path)
        pairs = content[0] if isinstance(content, list | tuple) and len(content) == 2 else content
        by_id = {image.image.stem: image for image in images}
        return [
            by_id[found] if annotated else replace(by_id[found], mask=None)
            for found, annotated in annotated_ids(pairs, by_id, path)
        ]


class SensumReader(_UnpackedByTheUser):
    """SensumSODF: ``<category>/{negative,positive}/data``, ``positive/annotation``, and lists of three folds.

    The lists are ``sensum_splits/<category>/<fold>/{train,test}/{neg,pos,pos_100}.pckl``. Where that folder is missing
    three stratified folds are drawn, with a warning: such numbers cannot be compared with the paper's.

    Args:
        val_split: share of the training images, of each label, kept back to set thresholds by.
        split_seed: seed of that choice, and of folds that have to be drawn.
    """

    folds = 3
    instructions = (
        "it must hold capsule/ and softgel/, each with negative/data, positive/data and positive/annotation, and "
        "sensum_splits/, as its owner, Sensum, hands SensumSODF out on request"
    )
    mask_above = 127
    mixed_training = True

    def __init__(self, val_split: float, split_seed: int) -> None:
        self.val_split, self.split_seed = val_split, split_seed

    def read(self, root: Path, category: str | None, fold: int | None, regime: Regime) -> Splits:
        name = chosen_category(root, category, lambda path: (path / "negative").is_dir())
        if fold is None or not 0 <= fold < self.folds:
            raise InputError(f"data.fold={fold}: SensumSODF has the folds 0, 1 and 2, one for each run")
        normal = self._images(root, root / name / "negative" / "data", None)
        defective = self._images(root, root / name / "positive" / "data", root / name / "positive" / "annotation")
        official = root / "sensum_splits" / name
        if official.is_dir():
            lists = {part: self._listed(official, fold, part, normal, defective) for part in ("train", "test")}
        else:
            warnings.warn(
                f"there is no {official}: three stratified folds are drawn instead, whose numbers cannot be compared "
                "with those of the paper",
                stacklevel=2,
            )
            lists = self._drawn(fold, [*normal.values(), *defective.values()])
        train, val = hold_out(lists["train"], self.val_split, self.split_seed)
        return Splits(train, lists["test"], val)

    def _images(self, root: Path, folder: Path, masks: Path | None) -> dict[str, AnomalyImage]:
        images = {}
        for path in pictures_below(folder):
            mask = masks / f"{path.stem}.png" if masks is not None else None
            mask = mask if mask is not None and mask.is_file() else None
            images[path.stem] = AnomalyImage(path.relative_to(root).as_posix(), path, masks is not None, mask)
        return images

    def _listed(
        self, official: Path, fold: int, part: str, normal: dict[str, AnomalyImage], defective: dict[str, AnomalyImage]
    ) -> list[AnomalyImage]:
        folder = self._fold_folder(official, fold) / part
        images = [
            normal[found]
            for found, _ in annotated_ids(read_plain_pickle(folder / "neg.pckl"), normal, folder / "neg.pckl")
        ]
        whole = folder / "pos_100.pckl"  # all of them annotated
        path = whole if whole.is_file() else folder / "pos.pckl"
        for found, annotated in annotated_ids(read_plain_pickle(path), defective, path):
            images.append(defective[found] if annotated else replace(defective[found], mask=None))
        return images

    def _fold_folder(self, official: Path, fold: int) -> Path:
        """The fold-th folder in the order of their numbers: copies count from 0 or from 1."""
        folders = sorted(
            (path for path in official.iterdir() if path.is_dir()),
            key=lambda path: int("".join(re.findall(r"\d+", path.name)) or -1),
        )
        if len(folders) != self.folds:
            raise InputError(f"{official} holds {len(folders)} folders instead of one for each of {self.folds} folds")
        return folders[fold]

    def _drawn(self, fold: int, images: list[AnomalyImage]) -> dict[str, list[AnomalyImage]]:
        generator = np.random.default_rng(self.split_seed)
        lists: dict[str, list[AnomalyImage]] = {"train": [], "test": []}
        for defective in (False, True):
            own = [image for image in images if image.defective == defective]
            for place, number in enumerate(generator.permutation(len(own))):
                lists["test" if place % self.folds == fold else "train"].append(own[number])
        return lists


class MagneticTileReader(_UnpackedByTheUser):
    """Magnetic tile defects: ``MT_<class>/Imgs/<name>.jpg`` with ``<name>.png``, soft-edged, as its mask.

    A tile was photographed under up to six exposures; the images of one tile go into one list. There is no official
    split. ``data.category`` keeps one class of defects; null: all.

    Args:
        test_split: share of the tiles of each class that are judged; without supervision all defects are.
        val_split: share of the tiles of each class kept back to set thresholds by.
        split_seed: seed of the choice.
    """

    instructions = (
        "it must hold MT_Free, MT_Blowhole, … each with Imgs/, as the repository abin24/Magnetic-tile-defect-datasets. "
        "(with the full stop) holds them"
    )
    mask_above = 127
    mixed_training = True

    def __init__(self, test_split: float, val_split: float, split_seed: int) -> None:
        self.test_split, self.val_split, self.split_seed = test_split, val_split, split_seed

    def read(self, root: Path, category: str | None, fold: int | None, regime: Regime) -> Splits:
        refuse_fold(fold, "the magnetic tile set")
        classes = [path.name.removeprefix("MT_") for path in sorted(root.glob("MT_*")) if path.is_dir()]
        if "Free" not in classes or len(classes) < 2:
            raise InputError(f"data.root={root} holds no magnetic tiles: {self.instructions}")
        defects = [name for name in classes if name != "Free"]
        if category is not None and category not in defects:
            raise InputError(f"data.category={category} is no class of defects: {did_you_mean(category, defects)}")
        images = [image for name in classes if name in ("Free", category or name) for image in self._class(root, name)]
        return own_splits(images, self.test_split, self.val_split, self.split_seed, regime)

    def _class(self, root: Path, name: str) -> list[AnomalyImage]:
        files = [path for path in pictures_below(root / f"MT_{name}" / "Imgs") if path.suffix.lower() != ".png"]
        groups = self._groups(root, name, [path.stem for path in files])
        defective = name != "Free"
        images = []
        for path in files:
            mask = path.with_suffix(".png")
            mask = mask if defective and mask.is_file() else None
            images.append(AnomalyImage(path.relative_to(root).as_posix(), path, defective, mask, groups[path.stem]))
        return images

    def _groups(self, root: Path, name: str, stems: list[str]) -> dict[str, str]:
        """The tile of each image: from ``tile_groups.csv`` in the root where it is there, else by `tile_groups`.

        A part of the set needs the table: with images missing, the rule may part a tile.
        """
        table = root / "tile_groups.csv"
        if not table.is_file():
            return {stem: f"{name}_{tile}" for stem, tile in tile_groups(stems).items()}
        with table.open(newline="") as file:
            known = {row["name"]: row["tile_group"] for row in csv.DictReader(file) if row["class"] == name}
        missing = [stem for stem in stems if stem not in known]
        if missing:
            raise InputError(f"{table} has no row for {len(missing)} images of MT_{name}: {first_few(missing)}")
        return {stem: known[stem] for stem in stems}


def tile_groups(stems: Iterable[str]) -> dict[str, str]:
    """Which images of one class show the same tile: names are ``exp<exposure>_num_<number>``.

    In the order of the numbers a new tile begins where the exposure does not grow, or the number jumps by
    more than 1000.

    Raises:
        InputError: a name of another form.
    """
    parsed = []
    for stem in stems:
        match = re.fullmatch(r"exp(\d+)_num_(\d+)", stem)
        if match is None:
            raise InputError(f"{stem} is no name of the magnetic tile set: expected exp<exposure>_num_<number>")
        parsed.append((int(match[2]), int(match[1]), stem))
    groups: dict[str, str] = {}
    tile, before = -1, (-(10**9), 0)
    for number, exposure, stem in sorted(parsed):
        if exposure <= before[1] or number - before[0] > 1000:
            tile += 1
        before = (number, exposure)
        groups[stem] = f"{tile:03d}"
    return groups


class FolderReader(_UnpackedByTheUser):
    """Your own images: a folder of normal ones and, to judge or to learn by, one of defective ones and their masks.

    A mask is ``<mask_dir>/<stem>.png`` or ``<stem>_mask.png``, below the same folders as the image. Without
    supervision no mask is needed at all; pixels of images without one are not scored.

    Args:
        normal_dir: folder of normal images, relative to the root or absolute.
        abnormal_dir: of defective ones; None: there are none, and AUROC cannot be computed.
        mask_dir: of their masks; None: there are none.
        mask_above: a mask's pixel is a defect where its 8-bit value is above this.
        test_split: share of the images of each kind that is judged; without supervision all defective ones are.
        val_split: share kept back to set thresholds by.
        split_seed: seed of the choice.
    """

    instructions = "it must hold the folder data.reader.normal_dir with pictures of normal parts"
    mixed_training = True

    def __init__(
        self,
        normal_dir: str,
        abnormal_dir: str | None,
        mask_dir: str | None,
        mask_above: int,
        test_split: float,
        val_split: float,
        split_seed: int,
    ) -> None:
        self.normal_dir, self.abnormal_dir, self.mask_dir, self.mask_above = (
            normal_dir,
            abnormal_dir,
            mask_dir,
            mask_above,
        )
        self.test_split, self.val_split, self.split_seed = test_split, val_split, split_seed

    def read(self, root: Path, category: str | None, fold: int | None, regime: Regime) -> Splits:
        refuse_category(category, "a folder of one's own")
        refuse_fold(fold, "a folder of one's own")
        images = []
        for key, defective in (("normal_dir", False), ("abnormal_dir", True)):
            name = getattr(self, key)
            if name is None:
                continue
            folder = root / Path(name).expanduser()
            if not folder.is_dir():
                hint = "; where there are no defective images set it to null" if defective else ""
                raise InputError(f"data.reader.{key}={name}: {folder} is no folder{hint}")
            for path in pictures_below(folder):
                inside = path.relative_to(folder)
                mask = self._mask(root, inside) if defective else None
                images.append(AnomalyImage(f"{folder.name}/{inside.as_posix()}", path, defective, mask))
        if self.mask_dir is None and self.abnormal_dir is not None and (root / "masks").is_dir():
            warnings.warn(
                f"{root / 'masks'} is there and not used: set data.reader.mask_dir=masks to score and to learn by it",
                stacklevel=2,
            )
        return own_splits(images, self.test_split, self.val_split, self.split_seed, regime)

    def _mask(self, root: Path, inside: Path) -> Path | None:
        if self.mask_dir is None:
            return None
        folder = root / Path(self.mask_dir).expanduser()
        if not folder.is_dir():
            raise InputError(
                f"data.reader.mask_dir={self.mask_dir}: {folder} is no folder; without masks set it to null"
            )
        for name in (f"{inside.stem}.png", f"{inside.stem}_mask.png"):
            path = folder / inside.parent / name
            if path.is_file():
                return path
        return None


# ---- what readers share ---------------------------------------------------------------------------


def pictures_below(folder: Path) -> list[Path]:
    """All pictures in a folder and below it, sorted.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
    return files


def chosen_category(root: Path, category: str | None, is_category: Callable[[Path], bool]) -> str:
    """The category, which must be there.

    Raises:
        InputError: none is chosen, or there is no such folder; lists what is there.
    """
    there = [path.name for path in sorted(root.iterdir()) if path.is_dir() and is_category(path)]
    if category not in there:
        raise InputError(f"data.category={category} is not below {root}: {did_you_mean(str(category), there)}")
    return category


def refuse_category(category: str | None, what: str) -> None:
    if category is not None:
        raise InputError(f"data.category={category}: {what} has no categories: set data.category=null")


def refuse_fold(fold: int | None, what: str) -> None:
    if fold is not None:
        raise InputError(f"data.fold={fold}: {what} has no folds: set data.fold=null")


def read_defects(path: Path, above: int) -> NDArray[np.bool_]:
    """A mask: where its 8-bit value is above ``above``, (H, W).

    Raises:
        InputError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode == "P":
                return np.asarray(picture) > above  # palette numbers, not colours
            if picture.mode.startswith("I"):  # 16 bits
                return (np.asarray(picture) >> 8 if above else np.asarray(picture)) > above
            return np.asarray(picture.convert("L")) > above
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise InputError(f"the mask {path} cannot be read ({error}): replace it") from error


def hold_out(images: Sequence[AnomalyImage], share: float, seed: int) -> tuple[list[AnomalyImage], list[AnomalyImage]]:
    """Parts a list in two: a share of the groups of each label goes into the second, at least one where it is above 0.

    Raises:
        InputError: the share is not below 1.
    """
    if not 0 <= share < 1:
        raise InputError(f"data.reader: a share of {share} of the images cannot be kept back: give 0 or more, below 1")
    held: set[str] = set()
    generator = np.random.default_rng(seed)
    for defective in (False, True):
        groups = sorted({image.group or image.name for image in images if image.defective == defective})
        count = min(max(round(share * len(groups)), int(share > 0)), max(len(groups) - 1, 0))
        held |= {groups[place] for place in generator.permutation(len(groups))[:count]}
    kept = [image for image in images if (image.group or image.name) not in held]
    return kept, [image for image in images if (image.group or image.name) in held]


def own_splits(
    images: Sequence[AnomalyImage], test_split: float, val_split: float, seed: int, regime: Regime
) -> Splits:
    """Splits of a set that comes without any; images of one group stay together.

    Without supervision training needs no defective image: all but those that set thresholds are judged.
    """
    if regime == "supervised":
        train, test = hold_out(images, test_split, seed)
        train, val = hold_out(train, val_split, seed + 1)
        return Splits(train, test, val)
    normal = [image for image in images if not image.defective]
    defective = [image for image in images if image.defective]
    train, judged_normal = hold_out(normal, test_split, seed)
    train, val_normal = hold_out(train, val_split, seed + 1)
    judged_defective, val_defective = hold_out(defective, val_split, seed + 1)
    return Splits(train, [*judged_normal, *judged_defective], [*val_normal, *val_defective])


def annotated_ids(pairs: Any, known: dict[str, AnomalyImage], path: Path) -> list[tuple[str, bool]]:
    """File stem and whether its mask may be used, of each (number, annotated) pair.

    Raises:
        InputError: something is no pair, or there is no image of such a number.
    """
    numbers = {int(stem): stem for stem in known if stem.isdigit()}
    found = []
    for pair in pairs if isinstance(pairs, list | tuple) else [pairs]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"{path} must hold pairs (image number, annotated), found {pair!r}")
        if pair[0] not in numbers:
            raise InputError(f"{path} names the image {pair[0]}, which is not in the folder")
        found.append((numbers[pair[0]], bool(pair[1])))
    return found
