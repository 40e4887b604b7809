"""Images of products with and without defects, for training with or without defective ones."""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.anomaly_files import AnomalyImage, AnomalyReader, Regime, read_defects
from datamodules.anomaly_sampling import BalancedWithMemory, EpochPlan, EveryImage, PlannedSampler, View, as_view
from datamodules.folder import FolderDataModule
from datamodules.photograph_files import as_tensor, find_pictures, of_each, open_photograph
from datamodules.sampling import EpochLoader, StridedSampler, shared_batches, trainer_position
from runs.errors import InputError, first_few

VOID = 255  # of a mask's pixel: nobody knows
LEAST_SIDE = 32  # pixels; the third stage of a ResNet would see two
SPECIAL = {"alpha": "an alpha channel, which is left out", "deep": "16 bits, of which the upper 8 are used"}


class AnomalyImages(Dataset):
    """Images at the network's size with their masks, flipped as a `View` says.

    Args:
        images: the list.
        size: height and width in pixels.
        mask_above: see `AnomalyReader`.
    """

    def __init__(self, images: list[AnomalyImage], size: tuple[int, int], mask_above: int) -> None:
        self.images, self.size, self.mask_above = images, size, mask_above
        self.rounds: Any = None  # RoundReader of cached features

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: View | int) -> dict[str, Any]:
        index, flip = as_view(item)
        image = self.images[index]
        sample: dict[str, Any] = {"label": int(image.defective), "index": index, "name": image.name}
        generation = None if self.rounds is None else self.rounds.generation
        if generation is not None and "feature_map" in generation:
            sample["feature_map"] = torch.from_numpy(generation["feature_map"][index])
        else:
            sample["image"] = flipped(as_tensor(resized(open_photograph(image.image), self.size)), flip)
        sample["mask"] = flipped(self.mask(image), flip)
        return sample

    def mask(self, image: AnomalyImage) -> Tensor:
        """(H, W) int64 of 0 and 1; all 255 for a defective image without a mask.

        The nearest pixel is taken, as for label maps; a defect of few pixels may vanish.
        """
        if image.mask is None:
            return torch.full(self.size, VOID if image.defective else 0, dtype=torch.int64)
        defects = Image.fromarray(read_defects(image.mask, self.mask_above).astype(np.uint8))
        small = defects.resize(self.size[::-1], Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(small, dtype=np.int64))


class PicturesToJudge(Dataset):
    """The pictures of a folder, at the network's size and as they are."""

    def __init__(self, pictures: Dataset, size: tuple[int, int]) -> None:
        self.pictures, self.size = pictures, size

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.pictures[index]
        photograph = sample["image"]
        picture = Image.fromarray(photograph.permute(1, 2, 0).numpy())
        return {**sample, "image": as_tensor(resized(picture, self.size)), "whole": photograph}


def resized(picture: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3), the whole picture, without a crop."""
    return np.asarray(picture.resize(size[::-1], Image.Resampling.BILINEAR))


def flipped(image: Tensor, flip: int) -> Tensor:
    """The last two axes turned round: 1 the rows, 2 the columns, 3 both."""
    axes = [axis for bit, axis in ((1, -2), (2, -1)) if flip & bit]
    return image.flip(axes) if axes else image


class AnomalyDataModule(FolderDataModule):
    """Normal images, and defective ones with masks, in the layout of a reader.

    Batches (shapes for one process):

    - training: ``image (B, 3, H, W)`` uint8, or ``feature_map (B, C, h, w)`` where features are cached; ``mask
      (B, H, W)`` int64 of 0, 1 and 255 (unknown); ``label (B,)``; ``index``; ``name``;
    - validation (held-out training images, where the reader holds any back) and test: the same with images;
    - prediction: ``image``, ``photograph (1, 3, h, w)`` as it is, ``index``, ``name``; one picture at a time.

    Args:
        reader: the on-disk layout.
        root: its folder.
        category: of sets that have categories; a model is trained for each.
        fold: of sets that have folds, from 0.
        regime: ``unsupervised``: normal images train; ``supervised``: defective ones and their masks too, balanced.
        size: height and width in pixels of what the network sees, or those of each category.
        flips: whether supervised training shows each defective image in its four flips.
        per_batch: whether each supervised batch, and not only the epoch, is balanced.
        cache_features: whether the run keeps features instead of computing them in each step.
        on_error: an unreadable image stops the run (``raise``) or is left out with a warning (``skip``).
        batch_size: images of a training batch over all processes.
        eval_batch_size: images of an evaluation batch of one process.
        predict_root: folder of pictures to judge, searched recursively.
        num_workers: loader processes for each loader.
        pin_memory: page-locked batches, for GPUs.
        seed: of the order and the draws.

    Raises:
        InputError: settings that make no sense; see `setup` for the files.
    """

    reader: AnomalyReader

    def __init__(
        self,
        reader: AnomalyReader,
        root: str,
        category: str | None,
        fold: int | None,
        regime: Regime,
        size: list[int] | dict[str, list[int]],
        flips: bool,
        per_batch: bool,
        cache_features: bool,
        on_error: Literal["raise", "skip"],
        batch_size: int,
        eval_batch_size: int,
        predict_root: str | None,
        num_workers: int,
        pin_memory: bool,
        seed: int,
    ) -> None:
        super().__init__(reader, root, predict_root)
        if isinstance(size, dict):
            if category not in size:
                raise InputError(f"data.category={category} is none of {first_few(sorted(size))}")
            size = size[category]
        if len(size) != 2 or min(size) < LEAST_SIDE:
            raise InputError(f"data.size={list(size)} must be [height, width], each {LEAST_SIDE} pixels or more")
        if cache_features and regime == "supervised" and flips:
            raise InputError(
                "data.cache_features=true keeps the features of images as they are: set data.flips=false beside it, or "
                "model.regime=unsupervised"
            )
        if num_workers < 0 or eval_batch_size < 1:
            raise InputError(
                f"data.num_workers={num_workers} must be 0 or more, data.eval_batch_size={eval_batch_size} 1 or more"
            )
        if per_batch and batch_size % 2:
            raise InputError(f"data.per_batch=true halves each batch: data.batch_size={batch_size} must be even")
        self.category, self.fold = category, fold
        self.regime, self.size = regime, (size[0], size[1])
        self.flips, self.per_batch, self.cache_features, self.on_error = flips, per_batch, cache_features, on_error
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self._train: AnomalyImages | None = None
        self._val: AnomalyImages | None = None
        self._test: AnomalyImages | None = None
        self._to_predict: PicturesToJudge | None = None

    def setup(self, stage: str) -> None:
        """Reads the lists and opens each file once.

        Raises:
            InputError: no root, category or fold; a file missing, unreadable or smaller than 32 pixels; a mask of
                another size than its image; a defective image where training must be normal, or one without mask
                where training is supervised; an image in two lists; nothing to train on.
        """
        if stage == "predict":
            self._to_predict = PicturesToJudge(find_pictures(self.predict_root), self.size)
            return
        if self._train is not None:
            return
        splits = self.reader.read(self.existing_root(), self.category, self.fold, self.regime)
        lists = {"training": self._fit_for_training(splits.train), "validation": splits.val, "test": splits.test}
        _refuse_shared(lists)
        lists = {name: self._readable(images, name) for name, images in lists.items()}
        self._check_training(lists["training"])
        if not lists["test"]:
            raise InputError(f"there is no image to judge below {self.root}: {self.reader.instructions}")
        unmarked = [image.name for image in lists["test"] if image.defective and image.mask is None]
        if unmarked:
            warnings.warn(
                f"{len(unmarked)} defective test images have no mask, so their pixels are not scored: "
                f"{first_few(unmarked)}",
                stacklevel=2,
            )
        self._train, self._val, self._test = (
            AnomalyImages(images, self.size, self.reader.mask_above) for images in lists.values()
        )

    def _fit_for_training(self, images: list[AnomalyImage]) -> list[AnomalyImage]:
        if self.regime == "supervised":
            return images
        if not self.reader.mixed_training:
            defective = [image.name for image in images if image.defective]
            if defective:
                raise InputError(
                    f"{len(defective)} training images below {self.root} are defective, and model.regime=unsupervised "
                    f"learns from normal ones alone: take out {first_few(defective)}, or set model.regime=supervised"
                )
        return [image for image in images if not image.defective]

    def _check_training(self, images: list[AnomalyImage]) -> None:
        if not any(not image.defective for image in images):
            raise InputError(f"there is no normal image to train on below {self.root}: {self.reader.instructions}")
        if self.regime == "unsupervised":
            return
        defective = [image for image in images if image.defective]
        if not defective:
            raise InputError(
                f"model.regime=supervised needs defective training images, and there are none below {self.root}: set "
                "model.regime=unsupervised"
            )
        unmarked = [image.name for image in defective if image.mask is None]
        if unmarked:
            raise InputError(
                f"{len(unmarked)} of {len(defective)} defective training images have no mask to learn from: "
                f"{first_few(unmarked)}"
            )

    def _readable(self, images: list[AnomalyImage], list_name: str) -> list[AnomalyImage]:
        """The images of a list that can be read and have masks that fit."""
        facts = of_each(_facts, {image.name: image.image for image in images})
        broken = [name for name, fact in facts.items() if isinstance(fact, str)]
        if broken and self.on_error == "raise":
            raise InputError(
                f"{len(broken)} of {len(images)} {list_name} images cannot be read: {facts[broken[0]]}"
                + (f"; and {first_few(broken[1:])}" if broken[1:] else "")
                + "; data.on_error=skip goes on without them"
            )
        if broken:
            warnings.warn(
                f"{len(broken)} unreadable {list_name} images are left out: {first_few(broken)}", stacklevel=2
            )
        kept = [image for image in images if image.name not in set(broken)]
        sizes = {image.name: facts[image.name][:2] for image in kept}
        small = [
            f"{name} ({width} x {height})" for name, (width, height) in sizes.items() if min(width, height) < LEAST_SIDE
        ]
        if small:
            raise InputError(
                f"{len(small)} {list_name} images are smaller than {LEAST_SIDE} x {LEAST_SIDE} pixels: "
                f"{first_few(small)}"
            )
        for kind, what in SPECIAL.items():
            there = [name for name in sizes if facts[name][2] == kind]
            if there:
                warnings.warn(f"{len(there)} {list_name} images have {what}: {first_few(there)}", stacklevel=2)
        self._check_masks([image for image in kept if image.mask is not None], sizes, list_name)
        return kept

    def _check_masks(self, images: list[AnomalyImage], sizes: dict[str, tuple[int, int]], list_name: str) -> None:
        missing = [str(image.mask) for image in images if not image.mask.is_file()]
        if missing:
            raise InputError(f"{len(missing)} masks of {list_name} images are missing: {first_few(missing)}")
        masks = of_each(
            lambda path: read_defects(path, self.reader.mask_above).shape[::-1],
            {image.name: image.mask for image in images},
        )
        other = [
            f"{name} ({mask[0]} x {mask[1]} instead of {sizes[name][0]} x {sizes[name][1]})"
            for name, mask in masks.items()
            if mask != sizes[name]
        ]
        if other:
            raise InputError(
                f"{len(other)} masks of {list_name} images have another size than their image: {first_few(other)}"
            )

    # -- what others ask for ----------------------------------------------------------------------

    def use_rounds(self, step: str, rounds: Any) -> None:
        """Training reads the field ``feature_map`` of these rounds (a `RoundReader`), where they have it."""
        assert self._train is not None
        self._train.rounds = rounds

    def training_images(self) -> Dataset:
        """The training images as they are, each once."""
        assert self._train is not None
        return AnomalyImages(self._train.images, self.size, self.reader.mask_above)

    def sample_names(self, part: str, indices: list[int]) -> list[str]:
        """Names of training images, for messages."""
        assert self._train is not None
        return [self._train.images[index].name for index in indices]

    # -- loaders ------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self._train is not None
        world_size = self.trainer.world_size
        share = shared_batches(self.batch_size, world_size, "data.batch_size")
        if self.per_batch and share % 2:
            raise InputError(
                f"data.per_batch=true halves each process's share of a batch: data.batch_size={self.batch_size} must "
                f"be a multiple of {2 * world_size}"
            )
        sampler = PlannedSampler(self.plan(), share, world_size, lambda: trainer_position(self.trainer))
        return EpochLoader(
            self._train,
            batch_size=share,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )

    def plan(self) -> EpochPlan:
        """What the epochs show."""
        assert self._train is not None
        images = self._train.images
        if self.regime == "unsupervised":
            return EveryImage(len(images), self.seed)
        places = {kind: [i for i, image in enumerate(images) if image.defective == kind] for kind in (False, True)}
        return BalancedWithMemory(places[False], places[True], self.flips, self.per_batch, self.seed)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        assert self._val is not None
        return self._judged(self._val) if len(self._val) else []

    def test_dataloader(self) -> DataLoader:
        assert self._test is not None
        return self._judged(self._test)

    def predict_dataloader(self) -> DataLoader:
        assert self._to_predict is not None
        sampler = StridedSampler(len(self._to_predict), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(self._to_predict, batch_size=1, sampler=sampler, num_workers=self.num_workers)

    def _judged(self, images: AnomalyImages) -> DataLoader:
        """Each image once over all processes.

        Raises:
            InputError: a process would have none, and the others wait for its share of the score.
        """
        world_size = self.trainer.world_size
        if len(images) < world_size:
            raise InputError(f"{len(images)} images cannot be judged by {world_size} processes: use fewer processes")
        sampler = StridedSampler(len(images), self.trainer.global_rank, world_size)
        return DataLoader(images, batch_size=self.eval_batch_size, sampler=sampler, num_workers=self.num_workers)


def _facts(path: Path) -> tuple[int, int, str] | str:
    """Width, height and what is special about an image; a sentence where it cannot be read."""
    try:
        picture = open_photograph(path)
    except InputError as error:
        return str(error)
    with Image.open(path) as stored:
        kind = "alpha" if stored.mode in ("RGBA", "LA", "PA") else "deep" if stored.mode.startswith("I;16") else ""
    return (*picture.size, kind)


def _refuse_shared(lists: dict[str, list[AnomalyImage]]) -> None:
    """An image, or a group of images of one object, in two lists would leak."""
    names = list(lists)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            shared = {image.group or image.name for image in lists[first]} & {
                image.group or image.name for image in lists[second]
            }
            if shared:
                raise InputError(
                    f"{len(shared)} images or groups are in both the {first} and the {second} list: "
                    f"{first_few(sorted(shared))}"
                )
