"""Photographs for two tasks that start from a pre-trained network: their classes, or their masks, in VOC's layout.

The splits are the paper's own kind: not VOC's lists, but all annotated images (or all masks) dealt out by iterative
stratification. Which image is in which part is written to the run's folder and travels in checkpoints.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from components.voc import VOID, read_mask
from datamodules.folder import FolderDataModule
from datamodules.photograph_checks import usable_photographs
from datamodules.photograph_files import (
    Photograph,
    PhotographReader,
    PhotographsToPredict,
    VOCReader,
    as_tensor,
    check_class_count,
    classes_of,
    find_pictures,
    multi_hot,
    of_each,
    open_photograph,
    sizes_of,
)
from datamodules.sampling import (
    Draw,
    EpochPosition,
    EpochSampler,
    StridedSampler,
    as_draw,
    draw_generator,
    shared_batches,
    trainer_position,
    training_loader,
)
from datamodules.stratification import iterative_stratification
from runs.errors import InputError, did_you_mean, first_few

PARTS = ("train", "val", "test")
ANNOTATED = "annotated"  # the list of all images that have an XML file
LEAST_SIDE = 32  # pixels; smaller images are left out


class AnnotatedVOCReader(VOCReader):
    """`VOCReader` that also knows the list ``annotated``: every image that has an XML file, 17 125 in VOC 2012.

    Args: as for `VOCReader`.
    """

    def read(self, root: Path, list_name: str) -> list[Photograph]:
        """As `VOCReader.read`; the list ``annotated`` needs no file of ImageSets.

        Raises:
            InputError: there are no XML files, one cannot be read, or images are missing.
        """
        if list_name != ANNOTATED:
            return super().read(root, list_name)
        folder = root / "VOCdevkit" / "VOC2012"
        files = {path.stem: path for path in sorted((folder / "Annotations").glob("*.xml"))}
        if not files:
            raise InputError(f"there is no XML file in {folder / 'Annotations'}: {self.instructions}")
        missing = [f"{name}.jpg" for name in files if not (folder / "JPEGImages" / f"{name}.jpg").is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of the {len(files)} images with an XML file are missing in {folder / 'JPEGImages'}: "
                f"{first_few(missing)}"
            )
        photographs = []
        for (name, path), classes in zip(files.items(), of_each(classes_of, files).values(), strict=True):
            mask = folder / self.masks_folder / f"{name}.png"
            image = folder / "JPEGImages" / f"{path.stem}.jpg"
            photographs.append(Photograph(name, image, classes, mask if mask.is_file() else None))
        return photographs


@dataclass(frozen=True)
class View:
    """How an image and its mask become squares.

    Attributes:
        side: of the square in pixels.
        crop: ``resize``: the whole image, its aspect not kept (public code); ``random``: a square from anywhere in
            the image (the paper's text), from its middle where it is judged. An image with a side below
            the square's is enlarged first.
        interpolation: of images; masks are always resized by the nearest pixel, or they would hold invented classes.
    """

    side: int
    crop: Literal["resize", "random"]
    interpolation: Literal["bilinear", "nearest"]

    def __call__(
        self, image: Image.Image, mask: NDArray[np.uint8] | None, generator: np.random.Generator | None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Image and mask under one geometry, (side, side, 3) and (side, side); the middle without a generator."""
        size = (self.side, self.side)
        if self.crop == "random":
            scale = max(1.0, self.side / min(image.size))
            size = (max(self.side, round(image.width * scale)), max(self.side, round(image.height * scale)))
        left, top = (
            room // 2 if generator is None else int(generator.integers(room + 1))
            for room in (size[0] - self.side, size[1] - self.side)
        )
        place = np.s_[top : top + self.side, left : left + self.side]
        filtering = Image.Resampling.BILINEAR if self.interpolation == "bilinear" else Image.Resampling.NEAREST
        pixels = np.asarray(image.resize(size, filtering))[place]
        if mask is None:
            return pixels, None
        return pixels, np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))[place]


class TransferPhotographs(Dataset):
    """One part of a split, as squares, each with its classes or with its mask."""

    def __init__(
        self,
        photographs: Sequence[Photograph],
        class_names: list[str],
        task: Literal["classification", "segmentation"],
        void_as_background: bool,
        view: View,
        training_seed: int | None,
    ) -> None:
        self.photographs, self.class_names, self.task = photographs, class_names, task
        self.void_as_background, self.view, self.training_seed = void_as_background, view, training_seed

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        index, number = as_draw(item)
        photograph = self.photographs[index]
        mask = None
        if self.task == "segmentation":
            assert photograph.mask is not None
            mask = read_mask(photograph.mask, len(self.class_names) + 1)
            if self.void_as_background:
                mask = np.where(mask == VOID, 0, mask).astype(np.uint8)
        generator = None if self.training_seed is None else draw_generator(self.training_seed, number)
        pixels, mask = self.view(open_photograph(photograph.image), mask, generator)
        sample = {"image": as_tensor(pixels), "index": index, "name": photograph.name}
        if mask is None:
            return sample | {"label": multi_hot(photograph, self.class_names)}
        return sample | {"mask": torch.from_numpy(mask.astype(np.int64))}


class SquaresToPredict(Dataset):
    """The pictures of a folder as squares; for segmentation the whole picture is there too, as ``whole``."""

    def __init__(self, pictures: PhotographsToPredict, view: View, whole: bool) -> None:
        self.pictures, self.view, self.whole = pictures, view, whole

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.pictures[index]
        image = Image.fromarray(picture["image"].permute(1, 2, 0).numpy())
        square = picture | {"image": as_tensor(self.view(image, None, None)[0])}
        return square | ({"whole": picture["image"]} if self.whole else {})


class VOCTransferDataModule(FolderDataModule):
    """Three parts of annotated photographs for multi-label classification or for segmentation.

    Batches (S pixels a side, C classes without background):

    - classification: ``image (B, 3, S, S)`` uint8, ``label (B, C)`` float32 multi-hot, ``index``, ``name``;
    - segmentation: ``mask (B, S, S)`` int64 with 0 background, 1..C, 255 void instead of ``label``;
    - prediction, one at a time: ``image``, ``index``, ``name``, and for segmentation ``whole (1, 3, H, W)``.

    An epoch is as many batches as show each training image at least once.

    Args:
        reader: the on-disk layout.
        root: its folder.
        class_names: C names; class c has the mask value c + 1.
        num_classes: C.
        task: what a sample carries.
        split: ``own``: the images of ``pool_list`` are dealt out by iterative stratification over their classes
            (segmentation: over the classes of their masks, background included); ``lists``: three lists of the layout.
        pool_list: list that an own split is made of.
        shares: of train, val and test in an own split.
        split_seed: of an own split and of the labelled fraction; not the run's, so that runs share their split.
        train_list: of ``split=lists``, as the next two; the lists may share images in val and test alone.
        val_list: looked at in training, never selected by.
        test_list: judged at the end.
        label_fraction: share of the training images that are kept, drawn by iterative stratification; above 0, up to 1.
        void_as_background: whether a mask's 255 counts as background, as in the public code.
        side: S.
        crop: see `View`.
        interpolation: see `View`.
        batch_size: of a training batch over all processes.
        eval_batch_size: images of an evaluation batch of one process. BatchNorm may use the statistics of the batch,
            so it can change scores.
        epochs_before: epochs that an earlier stage trained on these data; the order of the samples goes on after them.
        skip_bad: leave out photographs that cannot be read, instead of stopping.
        folder: where ``split/<part>.txt`` with the ids of each part is written, the run's.
        predict_root: folder of pictures to predict, searched recursively.
        num_workers: loader processes for each loader.
        pin_memory: page-locked batches, for GPUs.
        seed: seed of the order and of random crops.

    Raises:
        InputError: see `setup`.
    """

    reader: PhotographReader

    def __init__(
        self,
        reader: PhotographReader,
        root: str,
        class_names: list[str],
        num_classes: int,
        task: Literal["classification", "segmentation"],
        split: Literal["own", "lists"],
        pool_list: str,
        shares: list[float],
        split_seed: int,
        train_list: str,
        val_list: str,
        test_list: str,
        label_fraction: float,
        void_as_background: bool,
        side: int,
        crop: Literal["resize", "random"],
        interpolation: Literal["bilinear", "nearest"],
        batch_size: int,
        eval_batch_size: int,
        epochs_before: int,
        skip_bad: bool,
        folder: str,
        predict_root: str | None,
        num_workers: int,
        pin_memory: bool,
        seed: int,
    ) -> None:
        super().__init__(reader, root, predict_root)
        check_class_count(class_names, num_classes)
        if len(shares) != len(PARTS):
            raise InputError(f"data.shares={shares} must be three numbers: of train, val and test")
        if not 0 < label_fraction <= 1:
            raise InputError(f"data.label_fraction={label_fraction} must be above 0, and 1 at most")
        for name, value, least in (
            ("side", side, 1), ("eval_batch_size", eval_batch_size, 1), ("epochs_before", epochs_before, 0),
            ("num_workers", num_workers, 0),
        ):  # fmt: skip
            if value < least:
                raise InputError(f"data.{name}={value} must be {least} or more")
        self.class_names, self.task = list(class_names), task
        lists = {"train": train_list, "val": val_list, "test": test_list}
        self.asked: dict[str, Any] = {"task": task, "split": split, "label_fraction": label_fraction}
        if split == "own":
            self.asked |= {"pool_list": pool_list, "shares": list(shares), "split_seed": split_seed}
        else:
            self.asked |= {"lists": lists}
        self.split_seed = split_seed
        self.void_as_background, self.view = void_as_background, View(side, crop, interpolation)
        self.batch_size, self.eval_batch_size, self.epochs_before = batch_size, eval_batch_size, epochs_before
        self.skip_bad, self.folder = skip_bad, Path(folder)
        self.num_workers, self.pin_memory, self.seed = num_workers, pin_memory, seed
        self._known: dict[str, Photograph] = {}  # every photograph of the three parts
        self._in_mask: dict[str, NDArray[np.bool_]] = {}  # which of the values 0..C each mask holds
        self._ids: dict[str, list[str]] = {}
        self._to_predict: SquaresToPredict | None = None

    # -- the split -----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads the lists, opens each listed file, makes the split and writes its ids.

        Raises:
            InputError: no root; a list, image or XML file missing or broken; a class that is none of
                ``class_names``; an image in the training part and in another; a part without images;
                no label to learn from; for segmentation a mask that is missing or of another size than its image;
                fewer images to judge by than processes.
        """
        if stage == "predict":
            self._to_predict = SquaresToPredict(
                find_pictures(self.predict_root), self.view, whole=self.task == "segmentation"
            )
            return
        if not self._known:
            self.existing_root()
            self._ids = self._own_split() if self.asked["split"] == "own" else self._split_by_lists()
            for part, ids in self._ids.items():
                if not ids:
                    raise InputError(f"the part {part} of the split of {self.root} is empty: it needs an image or more")
            for part in ("val", "test"):
                shared = sorted(set(self._ids["train"]) & set(self._ids[part]))
                if shared:
                    raise InputError(f"{len(shared)} images are in both train and {part}: {first_few(shared)}")
            if self.task == "classification" and not any(self._known[name].classes for name in self._ids["train"]):
                raise InputError(f"no training image below {self.root} shows any of the classes: nothing can be learnt")
        if stage == "fit":
            self._write_ids()

    def _split_by_lists(self) -> dict[str, list[str]]:
        ids = {}
        for part, list_name in self.asked["lists"].items():
            ids[part] = list(self._read(list_name))
        return ids | {"train": self._labelled(ids["train"])}

    def _own_split(self) -> dict[str, list[str]]:
        names = list(self._read(self.asked["pool_list"]))
        part = iterative_stratification(self._stratified_labels(names), self.asked["shares"], self.split_seed)
        ids = {name: [names[place] for place in np.flatnonzero(part == p)] for p, name in enumerate(PARTS)}
        return ids | {"train": self._labelled(ids["train"])}

    def _labelled(self, names: list[str]) -> list[str]:
        """The training images that keep their labels."""
        fraction = self.asked["label_fraction"]
        if fraction == 1 or not names:
            return names
        labels = self._stratified_labels(names)
        part = iterative_stratification(labels, [fraction, 1 - fraction], self.split_seed)
        return [names[place] for place in np.flatnonzero(part == 0)]

    def _stratified_labels(self, names: list[str]) -> NDArray[np.bool_]:
        """(N, C) classes of the XML files, or (N, C + 1) those of the masks, background first."""
        if self.task == "classification":
            return np.array([[c in self._known[name].classes for c in self.class_names] for name in names], dtype=bool)
        return np.array([self._in_mask[name] for name in names], dtype=bool)

    def _read(self, list_name: str) -> dict[str, Photograph]:
        """A list's usable photographs by name, checked."""
        listed = self.reader.read(self.root, list_name)
        if not listed:
            raise InputError(f"the list {list_name} below {self.root} is empty: it must name at least one image")
        photographs = {photograph.name: photograph for photograph in listed}
        if len(photographs) < len(listed):
            names = [photograph.name for photograph in listed]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InputError(f"the list {list_name} names {first_few(twice)} more than once")
        for photograph in listed:
            for name in photograph.classes:
                if name not in self.class_names:
                    raise InputError(
                        f"the annotation of {photograph.image} names the class '{name}', which is none of "
                        f"data.class_names: {did_you_mean(name, self.class_names)}"
                    )
        files = {name: photograph.image for name, photograph in photographs.items()}
        usable = usable_photographs(files, f"the list {list_name}", self.skip_bad, LEAST_SIDE)
        photographs = {name: photographs[name] for name in usable}
        if self.task == "segmentation":
            self._check_masks(photographs, list_name)
        else:
            empty = [name for name, photograph in photographs.items() if not photograph.classes]
            if empty:
                warnings.warn(
                    f"{len(empty)} of {len(photographs)} photographs of the list {list_name} show none of the classes "
                    f"(their annotation has no object): {first_few(empty)}",
                    stacklevel=2,
                )
        self._known |= photographs
        return photographs

    def _check_masks(self, photographs: Mapping[str, Photograph], list_name: str) -> None:
        """Reads every mask once: what is wrong in one would come out in mid-training."""
        without = [name for name, photograph in photographs.items() if photograph.mask is None]
        if without:
            raise InputError(
                f"{len(without)} of {len(photographs)} images of the list {list_name} have no mask: "
                f"{first_few(without)}"
            )
        masks = of_each(self._look_at_mask, {n: p.mask for n, p in photographs.items() if p.mask is not None})
        with warnings.catch_warnings():  # its threads each change the filters and may leave them changed
            sizes = sizes_of({name: p.image for name, p in photographs.items()}, "images", list_name)
        other = [f"{n} ({masks[n][0]} instead of {sizes[n]})" for n in photographs if masks[n][0] != sizes[n]]
        if other:
            raise InputError(
                f"{len(other)} masks of the list {list_name} have another size than their image: {first_few(other)}"
            )
        self._in_mask |= {name: shown for name, (_, shown) in masks.items()}

    def _look_at_mask(self, path: Path) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """Width and height, and which of the values 0..C occur."""
        mask = read_mask(path, len(self.class_names) + 1)
        shown = np.bincount(mask.ravel(), minlength=VOID + 1)[: len(self.class_names) + 1] > 0
        return (mask.shape[1], mask.shape[0]), shown

    def _write_ids(self) -> None:
        if self.trainer is not None and not self.trainer.is_global_zero:
            return
        folder = self.folder / "split"
        folder.mkdir(parents=True, exist_ok=True)
        for part, ids in self._ids.items():
            (folder / f"{part}.txt").write_text("\n".join(ids) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """The ids of each part, with what was asked for to get them, as plain values."""
        return {"asked": self.asked, "split": self._ids}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a checkpoint's split, unless other data or another split is to be judged.

        Raises:
            InputError: a fit goes on with another split, images of the split are gone, or the other split would judge
                by images that were trained on.
        """
        if not self._known:  # a prediction
            return
        fitting = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        stored = state_dict["split"]
        names = sorted({name for ids in stored.values() for name in ids})
        gone = [name for name in names if name not in self._known]
        if state_dict["asked"] != self.asked or len(gone) == len(names):
            if fitting:
                raise InputError(
                    f"the checkpoint was trained on another split of other images than data.root={self.root} and the "
                    "data settings give: resume with those of that run, or start a new one"
                )
            seen = sorted(set(stored["train"]) & set(self._ids["test"]))
            if seen:
                raise InputError(
                    f"{len(seen)} of {len(self._ids['test'])} images of the split to judge by were trained on: "
                    f"{first_few(seen)}; judge by the run's own split (leave its data settings as they are), or by "
                    "other images"
                )
            return
        if gone:
            raise InputError(
                f"{len(gone)} of {len(names)} images of the checkpoint's split are not below {self.root}: "
                f"{first_few(gone)}"
            )
        self._ids = {part: list(ids) for part, ids in stored.items()}

    def sample_names(self, part: str, indices: list[int]) -> list[str]:
        """Names of training images, for messages."""
        return [self._ids["train"][index] for index in indices]

    # -- loaders -------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        dataset = self._part("train", self.seed)
        share = shared_batches(self.batch_size, self.trainer.world_size, "data.batch_size")
        batches = math.ceil(len(dataset) / self.batch_size)
        sampler = EpochSampler(len(dataset), share, batches, self.seed, self._position)
        return training_loader(dataset, sampler, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def _position(self) -> EpochPosition:
        """Where the arm stands, an earlier stage's epochs included: one phase or two, the order is the same."""
        here = trainer_position(self.trainer)
        return here._replace(epoch=here.epoch + self.epochs_before)

    def val_dataloader(self) -> DataLoader:
        return self._judged(self._part("val", None), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        return self._judged(self._part("test", None), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader:
        """One at a time: what a picture becomes must not depend on the others."""
        assert self._to_predict is not None
        return self._judged(self._to_predict, batch_size=1)

    def _part(self, part: str, training_seed: int | None) -> TransferPhotographs:
        photographs = [self._known[name] for name in self._ids[part]]
        return TransferPhotographs(
            photographs, self.class_names, self.task, self.void_as_background, self.view, training_seed
        )

    def _judged(self, dataset: TransferPhotographs | SquaresToPredict, batch_size: int) -> DataLoader:
        if len(dataset) < self.trainer.world_size:
            raise InputError(
                f"{len(dataset)} images cannot be judged by {self.trainer.world_size} processes: use fewer processes"
            )
        sampler = StridedSampler(len(dataset), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=self.num_workers)
