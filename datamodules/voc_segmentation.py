"""Segmentation from image labels, in Pascal VOC's layout: photographs, their classes, masks that only score.

What a list holds is a reader's business; this module checks, augments and batches. The true masks
of training images never reach a training batch: `training_images` and evaluation carry them as
``score_mask``, training reads ``pseudo_mask`` from what rounds left.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from components.voc import VOID, read_mask
from datamodules.folder import FolderDataModule
from datamodules.photograph_files import (
    Photograph,
    PhotographReader,
    PhotographsToPredict,
    as_tensor,
    check_class_count,
    find_pictures,
    multi_hot,
    of_each,
    open_photograph,
    sizes_of,
)
from datamodules.sampling import (
    Draw,
    EpochSampler,
    StridedSampler,
    as_draw,
    draw_generator,
    shared_batches,
    trainer_position,
    training_loader,
)
from runs.errors import InputError, did_you_mean, first_few


@dataclass(frozen=True)
class Augmentation:
    """ISIM's training view (official code): random long side, mirror, random crop.

    Attributes:
        resize_long: least and most pixels of the resized long side, uniform.
        flip: probability of mirroring.
        crop: side of the crop in pixels.
        pad_label: what a crop's border beyond the image is in the mask: ``ignore`` (255, as PSA and
            IRNet) or ``background`` (0, as the public code).
        pad_colour: RGB of that border; the mean colour is 0 after normalisation.
    """

    resize_long: tuple[int, int]
    flip: float
    crop: int
    pad_label: Literal["ignore", "background"]
    pad_colour: tuple[int, int, int]

    def __call__(
        self, image: Image.Image, mask: NDArray[np.uint8], generator: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image and mask under one geometry: (crop, crop, 3) and (crop, crop)."""
        scale = int(generator.integers(self.resize_long[0], self.resize_long[1] + 1)) / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        labels = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        if generator.random() < self.flip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        out = np.empty((self.crop, self.crop, 3), np.uint8)
        out[:] = self.pad_colour
        out_mask = np.full((self.crop, self.crop), VOID if self.pad_label == "ignore" else 0, np.uint8)
        spans = [_span(length, self.crop, generator) for length in labels.shape]
        source, target = tuple(s for s, _ in spans), tuple(t for _, t in spans)
        out[target], out_mask[target] = pixels[source], labels[source]
        return out, out_mask


def _span(length: int, crop: int, generator: np.random.Generator) -> tuple[slice, slice]:
    """What part of an axis goes where in the crop: a random window, or the whole at a random place."""
    if length >= crop:
        start = int(generator.integers(0, length - crop + 1))
        return slice(start, start + crop), slice(0, crop)
    start = int(generator.integers(0, crop - length + 1))
    return slice(0, length), slice(start, start + length)


class TrainingPhotographs(Dataset):
    """Augmented views with image labels and the pseudo mask of the round that holds.

    No true mask is read here. Before the first round, and for an image without a mask in it, the
    pseudo mask is empty: all background.
    """

    def __init__(self, photographs: list[Photograph], class_names: list[str], augment: Augmentation, seed: int) -> None:
        self.photographs, self.class_names = photographs, class_names
        self.augment, self.seed = augment, seed
        self.rounds: list[Any] = []  # RoundReader

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        index, number = as_draw(item)
        photograph = self.photographs[index]
        image = open_photograph(photograph.image)
        pixels, mask = self.augment(image, self.pseudo_mask(index, image), draw_generator(self.seed, number))
        return {
            "image": as_tensor(pixels),
            "label": multi_hot(photograph, self.class_names),
            "pseudo_mask": torch.from_numpy(mask.astype(np.int64)),
            "index": index,
            "name": photograph.name,
        }

    def pseudo_mask(self, index: int, image: Image.Image) -> NDArray[np.uint8]:
        """The mask of the newest generation with a field ``mask``, (H, W)."""
        mask = None
        for rounds in self.rounds:
            generation = rounds.generation
            if generation is not None and "mask" in generation:
                mask = generation["mask"].get(index)
        if mask is None:
            return np.zeros((image.height, image.width), np.uint8)
        if mask.shape != (image.height, image.width):
            raise InputError(
                f"the pseudo mask of {self.photographs[index].image} is {mask.shape[1]} x {mask.shape[0]} pixels and "
                f"the image {image.width} x {image.height}: start a new run where images changed"
            )
        return mask


class WholePhotographs(Dataset):
    """Whole images as they are, with labels and, where the data have them, true masks to score by."""

    def __init__(self, photographs: list[Photograph], class_names: list[str]) -> None:
        self.photographs, self.class_names = photographs, class_names

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        photograph = self.photographs[index]
        sample = {
            "image": as_tensor(np.asarray(open_photograph(photograph.image))),
            "label": multi_hot(photograph, self.class_names),
            "index": index,
            "name": photograph.name,
        }
        if photograph.mask is not None:
            mask = read_mask(photograph.mask, len(self.class_names) + 1)
            sample["score_mask"] = torch.from_numpy(mask.astype(np.int64))
        return sample


class VOCSegmentationDataModule(FolderDataModule):
    """Photographs with image labels for training, and whole ones with true masks for scoring.

    Batches (shapes for one process, C classes without background):

    - training: ``image (B, 3, crop, crop)``, ``label (B, C)`` float32 multi-hot, ``pseudo_mask
      (B, crop, crop)`` int64 with 0 background, 1..C, 255 ignored, ``index``, ``name``;
    - validation: one whole image at a time, ``score_mask`` instead of ``pseudo_mask``;
    - test: two loaders, first the list ``val_list``, then the training images that have a true mask;
    - prediction: ``image``, ``index``, ``name``.

    Args:
        reader: the on-disk layout.
        root: its folder.
        class_names: C names; class c has the mask value c + 1.
        num_classes: C.
        train_list: list of the training images: ``train`` or ``trainaug``.
        val_list: list that is judged.
        crop: see `Augmentation`.
        resize_long: see `Augmentation`.
        flip: see `Augmentation`.
        pad_label: see `Augmentation`.
        pad_colour: see `Augmentation`.
        batch_size: images of a training batch over all processes.
        predict_root: folder of pictures to predict, searched recursively.
        num_workers: loader processes for each loader.
        pin_memory: page-locked batches, for GPUs.
        seed: seed of the order and of the augmentation.

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
        train_list: str,
        val_list: str,
        crop: int,
        resize_long: list[int],
        flip: float,
        pad_label: Literal["ignore", "background"],
        pad_colour: list[int],
        batch_size: int,
        predict_root: str | None,
        num_workers: int,
        pin_memory: bool,
        seed: int,
    ) -> None:
        super().__init__(reader, root, predict_root)
        check_class_count(class_names, num_classes)
        if num_classes >= VOID:
            raise InputError(
                f"data.num_classes={num_classes}: a mask holds the values 1 to {VOID - 1}, no more classes"
            )
        if len(resize_long) != 2 or not 0 < resize_long[0] <= resize_long[1]:
            raise InputError(f"data.resize_long={resize_long} must be [least, most] pixels of the long side")
        if crop < 1:
            raise InputError(f"data.crop={crop} must be 1 pixel or more")
        if not 0 <= flip <= 1:
            raise InputError(f"data.flip={flip} must be a probability, 0 to 1")
        if num_workers < 0:
            raise InputError(f"data.num_workers={num_workers}: must be 0 (no extra process) or more")
        self.class_names = list(class_names)
        self.train_list, self.val_list = train_list, val_list
        least, most = resize_long
        red, green, blue = pad_colour
        self.augment = Augmentation((least, most), flip, crop, pad_label, (red, green, blue))
        self.batch_size, self.num_workers, self.pin_memory, self.seed = batch_size, num_workers, pin_memory, seed
        self._train: TrainingPhotographs | None = None
        self._train_whole: WholePhotographs | None = None
        self._val: WholePhotographs | None = None
        self._to_predict: PhotographsToPredict | None = None

    def setup(self, stage: str) -> None:
        """Reads the lists and opens each listed file.

        Raises:
            InputError: no root; a list, image or XML file missing or broken; an image in both lists;
                a class that is none of ``class_names``; a training list without any label; a mask
                of another size than its image; masks for some judged images and not for others; fewer images
                to judge by than processes.
        """
        if stage == "predict":
            self._to_predict = find_pictures(self.predict_root)
            return
        if self._train is not None:
            return
        root = self.existing_root()
        train, val = (self.reader.read(root, name) for name in (self.train_list, self.val_list))
        for photographs, name in ((train, self.train_list), (val, self.val_list)):
            if not photographs:
                raise InputError(f"the list {name} below {self.root} is empty: it must name at least one image")
            self._check(photographs, name)
        shared = sorted({p.name for p in train} & {p.name for p in val})
        if shared:
            raise InputError(
                f"{len(shared)} images are in both data.train_list={self.train_list} and "
                f"data.val_list={self.val_list}: {first_few(shared)}"
            )
        if not any(p.classes for p in train):
            raise InputError(f"no image of the list {self.train_list} below {self.root} has a label to learn from")
        unscored = [p.name for p in val if p.mask is None]
        if 0 < len(unscored) < len(val):
            raise InputError(
                f"{len(unscored)} of {len(val)} images of the list {self.val_list} have no mask to be judged by: "
                f"{first_few(unscored)}"
            )
        for judged in (len(val), sum(p.mask is not None for p in train)):
            if judged and self.trainer is not None:
                _check_shares(judged, self.trainer.world_size)
        self._train = TrainingPhotographs(train, self.class_names, self.augment, self.seed)
        self._train_whole = WholePhotographs(train, self.class_names)
        self._val = WholePhotographs(val, self.class_names)

    def _check(self, photographs: list[Photograph], list_name: str) -> None:
        foreign = {c: p.name for p in photographs for c in p.classes if c not in self.class_names}
        if foreign:
            name, where = next(iter(foreign.items()))
            raise InputError(
                f"the class '{name}' (image {where} of the list {list_name}) is none of data.class_names: "
                f"{did_you_mean(name, self.class_names)}"
            )
        doubled = [p.name for p in photographs]
        if len(set(doubled)) < len(doubled):
            twice = sorted({name for name in doubled if doubled.count(name) > 1})
            raise InputError(f"the list {list_name} names {first_few(twice)} more than once")
        images = sizes_of({p.name: p.image for p in photographs}, "images", list_name)
        # All masks are read once: what is wrong in one would come out after hours, when it is to score.
        masks = of_each(self._mask_size, {p.name: p.mask for p in photographs if p.mask is not None})
        other = [
            f"{name} ({masks[name][0]} x {masks[name][1]} instead of {images[name][0]} x {images[name][1]})"
            for name in masks
            if masks[name] != images[name]
        ]
        if other:
            raise InputError(
                f"{len(other)} masks of the list {list_name} have another size than their image: {first_few(other)}"
            )

    def _mask_size(self, path: Path) -> tuple[int, int]:
        height, width = read_mask(path, len(self.class_names) + 1).shape
        return width, height

    # -- what others ask for ----------------------------------------------------------------------

    def use_rounds(self, step: str, rounds: Any) -> None:
        """Training reads its pseudo masks from the field ``mask`` of these rounds (a `RoundReader`)."""
        assert self._train is not None
        self._train.rounds.append(rounds)

    def training_images(self) -> Dataset:
        """Whole, un-augmented training images in list order: what a round labels."""
        assert self._train_whole is not None
        return self._train_whole

    def sample_names(self, part: str, indices: list[int]) -> list[str]:
        """Names of training images, for messages."""
        assert self._train is not None
        return [self._train.photographs[index].name for index in indices]

    # -- loaders ------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self._train is not None
        size = len(self._train)
        if size < self.batch_size:
            raise InputError(f"data.batch_size={self.batch_size} is more than the {size} images of {self.train_list}")
        share = shared_batches(self.batch_size, self.trainer.world_size, "data.batch_size")
        sampler = EpochSampler(
            size, share, size // self.batch_size, self.seed, lambda: trainer_position(self.trainer)
        )  # fmt: skip
        return training_loader(self._train, sampler, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def val_dataloader(self) -> DataLoader:
        assert self._val is not None
        return self._whole(self._val)

    def test_dataloader(self) -> list[DataLoader]:
        assert self._train is not None and self._val is not None
        scored = [p for p in self._train.photographs if p.mask is not None]
        sets = [self._val, *([WholePhotographs(scored, self.class_names)] if scored else [])]
        return [self._whole(photographs) for photographs in sets]

    def predict_dataloader(self) -> DataLoader:
        assert self._to_predict is not None
        return self._whole(self._to_predict)

    def _whole(self, dataset: WholePhotographs | PhotographsToPredict) -> DataLoader:
        """One image at a time: they differ in size.

        Raises:
            InputError: a process would have none, and the others wait for its share of the score.
        """
        _check_shares(len(dataset), self.trainer.world_size)
        sampler = StridedSampler(len(dataset), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(dataset, batch_size=1, sampler=sampler, num_workers=self.num_workers)


def _check_shares(images: int, processes: int) -> None:
    if images < processes:
        raise InputError(f"{images} images cannot be judged by {processes} processes: use fewer processes")
