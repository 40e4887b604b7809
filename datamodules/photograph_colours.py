"""Photographs whose colours are to be predicted: COCO 2014, any folder, or VOC's without what is judged later.

Pixels leave as RGB; the module takes lightness and colour from them.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from datamodules.folder import FolderDataModule, existing_folder
from datamodules.photograph_checks import usable_photographs
from datamodules.photograph_files import IMAGE_SUFFIXES, as_tensor, open_photograph
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

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


@dataclass(frozen=True)
class Parts:
    """Names of photographs, files relative to the root; what is held out is never trained on."""

    train: list[str]
    val: list[str]
    test: list[str]


class ColourReader(Protocol):
    """An on-disk layout."""

    instructions: str  # where to get the data and what the folder must look like

    def prepare(self, root: Path) -> None:
        """Makes the data where they can be made."""
        ...

    def read(self, root: Path) -> Parts:
        """The photographs; raises InputError where folders or lists are missing."""
        ...


class COCO2014Reader:
    """COCO 2014 as its archives unpack: trained on all of ``train2014``, judged on a drawn part of ``test2014``.

    Args:
        val_count: photographs of test2014 to look at while training; none of those that judge.
        test_count: photographs of test2014 that judge.
        split_seed: seed of that draw.
    """

    instructions = (
        "it must hold train2014/*.jpg and test2014/*.jpg, as the archives of COCO 2014 unpack (cocodataset.org)"
    )

    def __init__(self, val_count: int, test_count: int, split_seed: int) -> None:
        self.val_count, self.test_count, self.split_seed = val_count, test_count, split_seed

    def prepare(self, root: Path) -> None:
        """Nothing: COCO is unpacked by the user."""

    def read(self, root: Path) -> Parts:
        """Lists both folders and draws."""
        for folder in ("train2014", "test2014"):
            if not (root / folder).is_dir():
                raise InputError(f"there is no folder {root / folder}: {self.instructions}")
        train, others = (pictures_below(root, folder) for folder in ("train2014", "test2014"))
        val, test, _ = _drawn(others, self.val_count, self.test_count, self.split_seed, f"{root / 'test2014'}")
        return Parts(train, val, test)


class FolderReader:
    """Any folder of photographs, searched with all below it; some are drawn to watch and to judge by.

    A VOCdevkit folder in it is left out: later stages are judged on its photographs, so their colours must not be seen.

    Args: as for `COCO2014Reader`.
    """

    instructions = f"it must hold photographs ({', '.join(IMAGE_SUFFIXES)}), in folders of any depth"

    def __init__(self, val_count: int, test_count: int, split_seed: int) -> None:
        self.val_count, self.test_count, self.split_seed = val_count, test_count, split_seed

    def prepare(self, root: Path) -> None:
        """Nothing: these are the user's files."""

    def read(self, root: Path) -> Parts:
        """Lists the folder and draws; warns of photographs below a VOCdevkit folder."""
        found = pictures_below(root)
        names = [name for name in found if "VOCdevkit" not in Path(name).parts]
        if len(names) < len(found):
            warnings.warn(
                f"{len(found) - len(names)} of {len(found)} photographs below {root} lie in a VOCdevkit folder and are "
                "left out: the tasks after the colouriser are judged on them",
                stacklevel=2,
            )
        val, test, train = _drawn(names, self.val_count, self.test_count, self.split_seed, str(root))
        return Parts(train, val, test)


class VOCPhotographsReader:
    """All photographs of a folder in VOC's layout, labelled or not, but those of some lists: they judge.

    What later stages test on must not be seen here, colours included.

    Args:
        held_out_lists: lists of ImageSets/Segmentation.
    """

    instructions = (
        "it must hold VOCdevkit/VOC2012 with JPEGImages and ImageSets/Segmentation, as the archive of Pascal VOC 2012 "
        "unpacks (host.robots.ox.ac.uk/pascal/VOC)"
    )

    def __init__(self, held_out_lists: list[str]) -> None:
        self.held_out_lists = held_out_lists

    def prepare(self, root: Path) -> None:
        """Nothing: these are the user's files."""

    def read(self, root: Path) -> Parts:
        """Reads the lists and takes what they name out of JPEGImages."""
        folder = Path("VOCdevkit") / "VOC2012"
        if not (root / folder / "JPEGImages").is_dir():
            raise InputError(f"there is no folder {root / folder / 'JPEGImages'}: {self.instructions}")
        lists = root / folder / "ImageSets" / "Segmentation"
        held_out: set[str] = set()
        for name in self.held_out_lists:
            path = lists / f"{name}.txt"
            if not path.is_file():
                there = [file.stem for file in lists.glob("*.txt")]
                raise InputError(f"there is no list {path}: {did_you_mean(name, there)}")
            held_out |= {line.split()[0] for line in path.read_text().splitlines() if line.strip()}
        found = pictures_below(root, (folder / "JPEGImages").as_posix())
        names = {Path(name).stem: name for name in found}
        if len(names) < len(found):
            shared = {Path(name).stem for name in set(found) - set(names.values())}
            twice = [name for name in found if Path(name).stem in shared]
            raise InputError(
                f"{len(twice)} photographs below {root} share their names but for folder or ending, so that lists "
                f"cannot tell them apart: {first_few(twice)}; keep one of each"
            )
        missing = sorted(held_out - set(names))
        if missing:
            raise InputError(
                f"{len(missing)} of {len(held_out)} photographs of the lists {first_few(self.held_out_lists)} are "
                f"missing below {root / folder / 'JPEGImages'}: {first_few(missing)}"
            )
        judged = [name for stem, name in names.items() if stem in held_out]
        return Parts([name for stem, name in names.items() if stem not in held_out], judged, judged)


def pictures_below(root: Path, folder: str = "") -> list[str]:
    """Names of the picture files of a folder and of all below it, relative to ``root``, sorted."""
    found = (path for path in (root / folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path.relative_to(root).as_posix() for path in found)


def _drawn(
    names: list[str], val_count: int, test_count: int, seed: int, source: str
) -> tuple[list[str], list[str], list[str]]:
    """Names to watch, to judge by, and the rest; each part sorted."""
    if min(val_count, test_count) < 1 or val_count + test_count > len(names):
        raise InputError(
            f"{source} holds {len(names)} pictures, of which the reader's val_count={val_count} and "
            f"test_count={test_count} are to be held out: give it counts of 1 or more that are there"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    test, val, rest = np.split(order, [test_count, test_count + val_count])
    sorted_val, sorted_test, sorted_rest = ([names[i] for i in sorted(part)] for part in (val, test, rest))
    return sorted_val, sorted_test, sorted_rest


class ResizedPhotographs(Dataset):
    """Photographs at the side of the network, whatever their shape was; training ones may be mirrored.

    Args:
        root: folder of the names.
        names: of the files.
        side: in pixels.
        resampling: of Pillow.
        flip: probability of mirroring.
        seed: of the mirroring.
    """

    def __init__(
        self, root: Path, names: list[str], side: int, resampling: Image.Resampling, flip: float, seed: int
    ) -> None:
        self.root, self.names, self.side, self.resampling = root, names, side, resampling
        self.flip, self.seed = flip, seed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        index, number = as_draw(item)
        pixels = self.resized(open_photograph(self.root / self.names[index]))
        if self.flip and draw_generator(self.seed, number).random() < self.flip:
            pixels = pixels[:, ::-1]
        return {"image": as_tensor(pixels), "index": index, "name": self.names[index]}

    def resized(self, photograph: Image.Image) -> np.ndarray:
        """(side, side, 3) uint8; the aspect is not kept."""
        return np.asarray(photograph.resize((self.side, self.side), self.resampling))


class PhotographsToColour(ResizedPhotographs):
    """Photographs at the network's side, with the whole ones beside them, whose lightness stays."""

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        index, _ = as_draw(item)
        photograph = open_photograph(self.root / self.names[index])
        return {
            "image": as_tensor(self.resized(photograph)),
            "whole": as_tensor(np.asarray(photograph)),
            "index": index,
            "name": self.names[index],
        }


class PhotographColoursDataModule(FolderDataModule):
    """Photographs to learn colours from, others to judge by, or a folder to be coloured.

    Batches: ``image (B, 3, side, side)`` uint8, ``index``, ``name``; in prediction one photograph at a time, with
    ``whole (1, 3, H, W)``, the same as it is.

    Grey and CMYK files are read as RGB, photographs smaller than ``min_side`` are left out; both are said, with their
    number (`usable_photographs`). The names of what is held out travel in the checkpoint and are written to
    ``split_file``.

    Args:
        reader: the on-disk layout.
        root: its folder.
        side: width and height of what the network sees, pixels.
        resize: how a photograph is brought to it.
        flip: probability of mirroring in training.
        min_side: width and height that a photograph must have, pixels.
        skip_bad: leave out files that cannot be read, instead of an error.
        batch_size: photographs of a training batch over all processes.
        eval_batch_size: photographs that a process evaluates together; the BatchNorms of a network may see all of them.
        split_file: JSON file for the names of what is held out.
        predict_root: folder of pictures to colour, searched recursively.
        num_workers: loader processes for each loader.
        pin_memory: page-locked batches, for GPUs.
        seed: seed of the order and of the mirroring.

    Raises:
        InputError: a size, probability or number that makes no sense; see `setup`.
    """

    reader: ColourReader

    def __init__(
        self,
        reader: ColourReader,
        root: str,
        side: int,
        resize: Literal["bilinear", "nearest"],
        flip: float,
        min_side: int,
        skip_bad: bool,
        batch_size: int,
        eval_batch_size: int,
        split_file: str,
        predict_root: str | None,
        num_workers: int,
        pin_memory: bool,
        seed: int,
    ) -> None:
        super().__init__(reader, root, predict_root)
        if side < 1 or eval_batch_size < 1 or num_workers < 0:
            raise InputError(
                f"data.side={side} and data.eval_batch_size={eval_batch_size} must be 1 or more, "
                f"data.num_workers={num_workers} 0 or more"
            )
        if not 0 <= flip <= 1:
            raise InputError(f"data.flip={flip} must be a probability, 0 to 1")
        self.side, self.resampling, self.flip = side, RESAMPLING[resize], flip
        self.min_side, self.skip_bad = min_side, skip_bad
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.split_file, self.num_workers, self.pin_memory, self.seed = Path(split_file), num_workers, pin_memory, seed
        self.parts: Parts | None = None
        self._to_predict: PhotographsToColour | None = None

    def setup(self, stage: str) -> None:
        """Lists the photographs and decodes each, coarsely: 80 000 take about a minute.

        Raises:
            InputError: no root, or not in its layout; files that cannot be read; photographs that are trained on
                and held out; fewer than a batch to train on, or than processes to judge by.
        """
        if stage == "predict":
            self._to_predict = self._find_pictures()
            return
        if self.parts is not None:
            return
        root = self.existing_root()
        listed = self.reader.read(root)
        shared = sorted(set(listed.train) & {*listed.val, *listed.test})
        if shared:
            raise InputError(f"{len(shared)} photographs are trained on and held out: {first_few(shared)}")
        names = sorted({*listed.train, *listed.val, *listed.test})
        files = {name: self.root / name for name in names}
        usable = set(usable_photographs(files, str(self.root), self.skip_bad, self.min_side))
        parts = Parts(*([name for name in part if name in usable] for part in (listed.train, listed.val, listed.test)))
        if len(parts.train) < self.batch_size:
            raise InputError(
                f"the data's batch_size={self.batch_size} is more than the {len(parts.train)} photographs to train on "
                f"below {self.root}"
            )
        processes = 1 if self.trainer is None else self.trainer.world_size
        if min(len(parts.val), len(parts.test)) < processes:
            raise InputError(
                f"{len(parts.val)} photographs to watch and {len(parts.test)} to judge by below {self.root} cannot be "
                f"shared by {processes} processes"
            )
        self.parts = parts
        if self.trainer is not None and self.trainer.is_global_zero:
            self.split_file.parent.mkdir(parents=True, exist_ok=True)
            self.split_file.write_text(json.dumps({**self.state_dict(), "train": parts.train}, indent=1) + "\n")

    def _find_pictures(self) -> PhotographsToColour:
        folder = existing_folder(self.predict_root, "data.predict_root", "name the folder of the pictures to colour")
        names = pictures_below(folder)
        if not names:
            raise InputError(f"data.predict_root={folder} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
        files = {name: folder / name for name in names}
        usable = usable_photographs(files, str(folder), self.skip_bad, least_side=1)
        return PhotographsToColour(folder, usable, self.side, self.resampling, 0.0, self.seed)

    # -- what was drawn ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The photographs that are held out, which travel in checkpoints."""
        return {} if self.parts is None else {"val": self.parts.val, "test": self.parts.test}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compares them with a resumed run's, and judges a finished run by its own.

        A draw from a folder with one file more, or by another seed, holds photographs that were trained on. So those
        of the checkpoint judge where any of them is there; other data are judged by their own draw.

        Raises:
            InputError: the run that goes on would now train on photographs that it has held out, or judge by others.
        """
        if self.parts is None or not state_dict or self.state_dict() == state_dict:
            return
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            raise InputError(
                f"the run has held out {len(state_dict['test'])} photographs that are not those that the data below "
                f"{self.root} now give: resume with the data and the data settings of that run"
            )
        val, test = ([n for n in state_dict[part] if (self.root / n).is_file()] for part in ("val", "test"))
        if not test:
            return
        if len(test) < len(state_dict["test"]):
            gone = [name for name in state_dict["test"] if name not in test]
            warnings.warn(
                f"{len(gone)} of {len(state_dict['test'])} photographs that the run holds out are not below "
                f"{self.root}: {first_few(gone)}; the others judge",
                stacklevel=2,
            )
        self.parts = replace(self.parts, val=val, test=test)

    def sample_names(self, part: str, indices: list[int]) -> list[str]:
        """Names of training photographs, for messages."""
        assert self.parts is not None
        return [self.parts.train[index] for index in indices]

    # -- loaders ---------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        assert self.parts is not None
        size = len(self.parts.train)
        share = shared_batches(self.batch_size, self.trainer.world_size, "the data's batch_size")
        sampler = EpochSampler(size, share, size // self.batch_size, self.seed, lambda: trainer_position(self.trainer))
        photographs = self._photographs(self.parts.train, self.flip)
        return training_loader(photographs, sampler, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def val_dataloader(self) -> DataLoader:
        assert self.parts is not None
        return self._evaluated(self._photographs(self.parts.val, 0.0), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        assert self.parts is not None
        return self._evaluated(self._photographs(self.parts.test, 0.0), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader:
        """One at a time: what a photograph becomes must not depend on the others."""
        assert self._to_predict is not None
        return self._evaluated(self._to_predict, batch_size=1)

    def _photographs(self, names: Sequence[str], flip: float) -> ResizedPhotographs:
        return ResizedPhotographs(self.root, list(names), self.side, self.resampling, flip, self.seed)

    def _evaluated(self, photographs: ResizedPhotographs, batch_size: int) -> DataLoader:
        sampler = StridedSampler(len(photographs), self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(photographs, batch_size=batch_size, sampler=sampler, num_workers=self.num_workers)
