"""Photographs to be segmented one by one, with guide superpixels and the maps that people drew of them."""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.bsds_files import BSDSImage, BSDSReader, PhotographFolderReader, chosen, read_ucm2
from datamodules.folder import FolderDataModule, existing_folder
from datamodules.photograph_files import as_tensor, of_each, open_photograph, sizes_of
from datamodules.sampling import EpochLoader, EpochPosition, StridedSampler, trainer_position
from datamodules.superpixels import Superpixels, find_ucm2
from runs.errors import InputError, first_few

LEAST_SIDE = 8  # pixels, of an image that is segmented
log = logging.getLogger("reprise.data")


@runtime_checkable
class HasSettings(Protocol):
    """A module that segments each image with several settings."""

    settings: Sequence[Any]


@runtime_checkable
class ReadsUcm2(Protocol):
    """A module that can say that it reads the boundary hierarchies of the photographs."""

    reads_ucm2: bool


class SegmentedImages(Dataset):
    """Photographs as samples, see `BSDSDataModule`; the last one is kept, for settings that follow each other.

    Args:
        images: the photographs.
        reader: reads their human maps.
        root: folder of the data.
        superpixels: makes their guides.
        scale: of the image that is segmented, 0..1.
        with_ucm: whether samples carry ``ucm2``.
    """

    def __init__(
        self,
        images: Sequence[BSDSImage],
        reader: BSDSReader,
        root: Path,
        superpixels: Superpixels,
        scale: float,
        with_ucm: bool,
    ) -> None:
        self.images, self.reader, self.root = images, reader, root
        self.superpixels, self.scale, self.with_ucm = superpixels, scale, with_ucm
        self._kept: tuple[int, dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._kept is None or self._kept[0] != index:
            self._kept = (index, self._read(index))
        return dict(self._kept[1])

    def _read(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        picture = open_photograph(image.image)
        size = (picture.height, picture.width)
        pixels = scaled(picture, self.scale)
        guide = self.superpixels.guide(self.root, image, pixels, size)
        source = self.superpixels.source_of(self.root, image)
        log.info("guide of %s: %s, K = %d superpixels", image.name, source, guide.max() + 1)
        if not guide.any():
            warnings.warn(
                f"{image.name} has one superpixel ({source} parts nothing): what is voted there has one region",
                stacklevel=2,
            )
        sample = {
            "image": as_tensor(pixels),
            "guide": torch.from_numpy(guide),
            "guide_source": source,
            "human": [torch.from_numpy(labels) for labels in human_maps(self.reader, image, size)],
            "size": size,
            "index": torch.tensor([index]),
            "name": image.name,
        }
        if self.with_ucm:
            sample["ucm2"] = torch.from_numpy(_ucm2_of(image, size))
        return sample


class ImagesWithSettings(Dataset):
    """Each image with each setting, image by image: ``setting`` is the setting's position."""

    def __init__(self, images: SegmentedImages, settings: int) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images) * self.settings

    def __getitem__(self, item: tuple[int, bool] | int) -> dict[str, Any]:
        place, spare = item if isinstance(item, tuple) else (item, False)  # torch's own samplers give plain places
        image, setting = divmod(place, self.settings)
        sample = {**self.images[image], "setting": setting}
        return {**sample, "spare": torch.tensor([True])} if spare else sample


class WalkSampler(Sampler[tuple[int, bool]]):
    """Every place once over all processes, in order; process r takes r, r + W, …

    A resumed epoch goes on after the batches that are done. A process that would have one place fewer than
    others gets the last one again, marked as spare, because processes wait for each other after each batch.

    Args:
        size: number of places.
        world_size: number of processes, W.
        position: tells where the run stands.
    """

    def __init__(self, size: int, world_size: int, position: Callable[[], EpochPosition]) -> None:
        self.size, self.each, self.position = size, -(-size // world_size), position

    def __len__(self) -> int:
        return self.each

    def __iter__(self) -> Iterator[tuple[int, bool]]:
        at = self.position()
        places = (at.rank + at.world_size * turn for turn in range(at.batches_done, self.each))
        return iter([(min(place, self.size - 1), place >= self.size) for place in places])


class Spare(Dataset):
    """One image, marked as spare: for a process that has none of its own to judge.

    Lightning passes over a process whose loader is empty, and the others then wait for it at the end of the epoch.
    """

    def __init__(self, images: SegmentedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.images[0], "spare": torch.tensor([True])}


class BSDSDataModule(FolderDataModule):
    """Photographs with guide superpixels and human maps; one batch is one photograph, without a batch axis.

    - ``image`` (3, h, w) uint8 and ``guide`` (h, w) int64, superpixels 0..K-1, at ``scale``;
    - ``guide_source``: where the guide comes from, in a word;
    - ``human``: a list of int64 maps (H, W) at full size, empty where none is known; labels of any number;
    - ``size``: (H, W); ``index`` (1,); ``name``;
    - ``ucm2`` (2H+1, 2W+1) float64, for a module that reads it (`ReadsUcm2`);
    - training: ``setting``, position among the module's settings. An epoch walks over every image with every
      setting. Nothing is learnt across images, so test reads the same images;
    - ``spare`` (1,): there only in a sample that counts for nothing, where processes have unequal shares.

    Args:
        reader: the layout.
        root: folder of the data.
        splits: parts of the data that are read, one after the other.
        images: ids of the images that are read, or null for all of the splits.
        limit: how many of these, from the first on, or null for all.
        scale: by which images shrink before they are segmented, 0..1; human maps keep their size.
        superpixels: makes the guides.
        predict_root: folder of photographs to segment without scores.
        num_workers: processes that read ahead; the guide takes a second of a full-size image.

    Raises:
        InputError: a scale that is none.
    """

    reader: BSDSReader

    def __init__(
        self,
        reader: BSDSReader,
        root: Path | None,
        splits: list[str],
        images: list[str | int] | None,
        limit: int | None,
        scale: float,
        superpixels: Superpixels,
        predict_root: Path | None,
        num_workers: int,
    ) -> None:
        super().__init__(reader, root, predict_root)
        if not 0 < scale <= 1:
            raise InputError(f"data.scale={scale} must be above 0 and at most 1, the size of the files")
        self.splits, self.chosen_images, self.limit = splits, images, limit
        self.scale, self.superpixels = scale, superpixels
        self.num_workers = num_workers
        self._images: SegmentedImages | None = None
        self._to_predict: SegmentedImages | None = None

    def setup(self, stage: str) -> None:
        """Finds the photographs and reads all files that could stop a long run in the middle.

        Raises:
            InputError: a missing folder, split or image, a file that is broken, missing or of another size.
        """
        if stage == "predict":
            if self._to_predict is None:
                reader = PhotographFolderReader()
                root = existing_folder(
                    self.predict_root, "data.predict_root", "name the folder of the photographs to segment"
                )
                self._to_predict = self._checked(reader.images(root, []), reader, root)
        elif self._images is None:
            root = self.existing_root()
            images = chosen(self.reader.images(root, self.splits), self.chosen_images, self.limit)
            self._images = self._checked(images, self.reader, root)

    def train_dataloader(self) -> EpochLoader:
        assert self._images is not None and self.trainer is not None
        module = self.trainer.lightning_module
        settings = len(module.settings) if isinstance(module, HasSettings) else 1
        pairs = ImagesWithSettings(self._images, settings)
        sampler = WalkSampler(len(pairs), self.trainer.world_size, lambda: trainer_position(self.trainer))
        return EpochLoader(pairs, batch_size=1, sampler=sampler, collate_fn=_the_only_one, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader:
        assert self._images is not None
        return self._each_once(self._images)

    def predict_dataloader(self) -> DataLoader:
        assert self._to_predict is not None
        return self._each_once(self._to_predict)

    def names_to_predict(self) -> list[str]:
        """Of all photographs of a prediction, those of other processes too."""
        return [] if self._to_predict is None else [image.name for image in self._to_predict.images]

    def _each_once(self, images: SegmentedImages) -> DataLoader:
        assert self.trainer is not None
        sampler = StridedSampler(len(images), self.trainer.global_rank, self.trainer.world_size)
        if not len(sampler):
            return DataLoader(Spare(images), batch_size=1, collate_fn=_the_only_one)
        return DataLoader(images, batch_size=1, sampler=sampler, collate_fn=_the_only_one, num_workers=self.num_workers)

    def _checked(self, images: list[BSDSImage], reader: BSDSReader, root: Path) -> SegmentedImages:
        files = {image.name: image.image for image in images}
        sizes = {name: (height, width) for name, (width, height) in sizes_of(files, "images", str(root)).items()}
        least = min(sizes, key=lambda name: min(sizes[name]))
        if min(scaled_size(sizes[least], self.scale)) < LEAST_SIDE:
            raise InputError(
                f"{least} has {sizes[least][0]}x{sizes[least][1]} pixels (rows x columns): at data.scale={self.scale} "
                f"its shorter side is below {LEAST_SIDE}"
            )
        self.superpixels.check(root, images)
        module = self.trainer.lightning_module if self.trainer is not None else None
        with_ucm = isinstance(module, ReadsUcm2) and module.reads_ucm2
        if with_ucm:
            find_ucm2(images, "this method reads boundary hierarchies")  # all that are missing, in one sentence
        by_file = {image.image: image for image in images}

        def read_through(path: Path) -> tuple[int, bool]:
            image = by_file[path]
            if self.superpixels.source_of(root, image) in ("mat", "ucm"):
                self.superpixels.from_file(root, image, sizes[image.name])
            if with_ucm:
                _ucm2_of(image, sizes[image.name])
            with Image.open(path) as picture:
                grey = picture.mode in ("L", "LA", "1", "I;16")
            return len(human_maps(reader, image, sizes[image.name])), grey

        facts = of_each(read_through, files)
        grey = [name for name, (_, is_grey) in facts.items() if is_grey]
        if grey:
            warnings.warn(
                f"{len(grey)} of {len(images)} images are grey: {first_few(grey)}; they are read as RGB of three equal "
                "channels",
                stacklevel=2,
            )
        unknown = [name for name, (maps, _) in facts.items() if not maps]
        if unknown and reader is self.reader:
            warnings.warn(
                f"{len(unknown)} of {len(images)} images have no human maps: {first_few(unknown)}; they are segmented "
                "and not scored",
                stacklevel=2,
            )
        return SegmentedImages(images, reader, root, self.superpixels, self.scale, with_ucm)


def human_maps(reader: BSDSReader, image: BSDSImage, size: tuple[int, int]) -> list[NDArray[np.int64]]:
    """The human maps (H, W) of a photograph of this size.

    Raises:
        InputError: a map of another size.
    """
    maps = reader.human_maps(image)
    for labels in maps:
        if labels.shape != size:
            raise InputError(
                f"a human map of {image.image} ({first_few([str(path) for path in image.human])}) has "
                f"{labels.shape[0]}x{labels.shape[1]} pixels (rows x columns) and the photograph {size[0]}x{size[1]}: "
                "they must have one size"
            )
    return maps


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Rows and columns at a scale, rounded."""
    return round(size[0] * scale), round(size[1] * scale)


def scaled(picture: Image.Image, scale: float) -> NDArray[np.uint8]:
    """RGB pixels (h, w, 3) at a scale; what shrinks is smoothed as much, so nothing aliases."""
    rows, columns = scaled_size((picture.height, picture.width), scale)
    if scale < 1:
        picture = picture.resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _ucm2_of(image: BSDSImage, size: tuple[int, int]) -> NDArray[np.float64]:
    path = find_ucm2([image], "this method reads boundary hierarchies")[0]
    ucm2 = read_ucm2(path)
    if ucm2.shape != (2 * size[0] + 1, 2 * size[1] + 1):
        raise InputError(
            f"{path} has {ucm2.shape[0]}x{ucm2.shape[1]} values (rows x columns); the photograph of "
            f"{size[0]}x{size[1]} pixels needs {2 * size[0] + 1}x{2 * size[1] + 1}"
        )
    return ucm2


def _the_only_one(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return samples[0]
