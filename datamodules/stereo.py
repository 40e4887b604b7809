"""Rectified stereo pairs: patches for training at the disparities of the last round, whole pairs for all else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.folder import FolderDataModule, existing_folder
from datamodules.sampling import (
    Draw,
    EpochLoader,
    EpochSampler,
    StridedSampler,
    as_draw,
    draw_generator,
    shared_batches,
    trainer_position,
)
from datamodules.stereo_files import PairFiles, S2PTiles, StereoReader, read_grey
from runs.errors import InputError

MAPS_OF = "disparity"  # field of the rounds: (H, W) float16, NaN where a pixel is not to be trusted
LARGEST = 2048  # whole numbers beyond it have no float16


@dataclass(frozen=True)
class StereoPair:
    """One pair as it is matched: scaled, grey, in memory.

    Attributes:
        name: of its files.
        left: raw grey values (H, W) float32; pixels without a value hold the image's mean.
        right: the same of the other image.
        valid_left: bool (H, W), whether a pixel has a value.
        valid_right: the same of the other image.
        range: least and most disparity, pixels.
        truth: (H, W) float32, NaN where unknown, or None.
    """

    name: str
    left: np.ndarray
    right: np.ndarray
    valid_left: np.ndarray
    valid_right: np.ndarray
    range: tuple[int, int]
    truth: np.ndarray | None

    def sample(self, index: int, sign: int) -> dict[str, Any]:
        """The fields of the batch vocabulary, without a batch axis."""
        sample = {
            "left": torch.from_numpy(standardised(self.left)),
            "right": torch.from_numpy(standardised(self.right)),
            "guide_left": torch.from_numpy(self.left),
            "guide_right": torch.from_numpy(self.right),
            "valid": torch.from_numpy(self.valid_left),
            "range": torch.tensor(self.range),
            "sign": torch.tensor(sign),
            "index": torch.tensor(index),
            "name": self.name,
        }
        return sample if self.truth is None else {**sample, "truth": torch.from_numpy(self.truth)}


def standardised(image: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over the whole image, in training and in matching alike."""
    return (image - image.mean()) / image.std()


class PairReader:
    """Reads pairs through a layout, scales them, and answers what is wrong with them.

    Args: as for `StereoDataModule`.
    """

    def __init__(self, reader: StereoReader, scale: int, min_disp: float | None, max_disp: float | None) -> None:
        self.reader, self.scale, self.min_disp, self.max_disp = reader, scale, min_disp, max_disp

    def read(self, files: PairFiles) -> StereoPair:
        """Raises InputError: images of two sizes or of one grey value, no range, or one that does not fit."""
        raw = [read_grey(path) for path in (files.left, files.right)]
        if raw[0].shape != raw[1].shape:
            shapes = " and ".join(f"{path} has {h}x{w}" for path, (h, w) in zip(
                (files.left, files.right), (image.shape for image in raw), strict=True))  # fmt: skip
            raise InputError(f"the images of a pair must have one shape (rows x columns): {shapes}")
        truth = self.reader.truth(files)
        if truth is not None and truth.shape != raw[0].shape:
            raise InputError(f"{files.truth} has the shape {truth.shape} and {files.left} {raw[0].shape}")
        smallest = min(raw[0].shape)
        if self.scale > smallest:
            raise InputError(
                f"data.scale={self.scale} leaves no pixel of {files.left}, whose shorter side has {smallest}"
            )
        valid, filled = [], []
        for path, image in zip((files.left, files.right), raw, strict=True):
            there = np.isfinite(image)
            mean = image[there].mean() if there.any() else 0.0
            valid.append(block_mean(there, self.scale) == 1)
            filled.append(block_mean(np.where(there, image, mean), self.scale))
            if np.ptp(filled[-1]) == 0:
                raise InputError(f"{path} has one grey value everywhere: nothing can be matched in it")
        return StereoPair(
            name=files.name,
            left=filled[0],
            right=filled[1],
            valid_left=valid[0],
            valid_right=valid[1],
            range=self._range(files, filled[0].shape[1]),
            truth=None if truth is None else block_median(truth, self.scale) / np.float32(self.scale),
        )

    def _range(self, files: PairFiles, width: int) -> tuple[int, int]:
        low, high = self.reader.extent(files) or (0.0, None)
        low = low if self.min_disp is None else self.min_disp
        high = high if self.max_disp is None else self.max_disp
        if high is None:
            raise InputError(
                f"nothing says how large the disparities of {files.left} are: add data.max_disp=<pixels> to the command"
            )
        low, high = (int(np.floor(end / self.scale + 0.5)) for end in (low, high))
        if low >= high:
            raise InputError(
                f"{files.left}: the least disparity {low} is not below the most, {high}: set data.min_disp lower, or "
                "data.max_disp higher"
            )
        furthest = max(abs(low), abs(high))
        if furthest >= width:
            raise InputError(
                f"disparities up to {furthest} do not fit {files.left}, which is {width} pixels wide here: "
                "set data.max_disp (and data.min_disp) below the width"
            )
        if furthest > LARGEST:
            raise InputError(f"disparities up to {furthest} pixels of {files.left}: at most {LARGEST} can be kept")
        return low, high


def block_mean(values: np.ndarray, scale: int) -> np.ndarray:
    """Means of ``scale`` x ``scale`` blocks, float32; rows and columns that fill no block are cut off."""
    return _blocks(values, scale).mean(axis=-1, dtype=np.float64).astype(np.float32)


def block_median(values: np.ndarray, scale: int) -> np.ndarray:
    """Medians of blocks, the lower of two middle ones: never a mix of near and far; NaN where most are NaN."""
    ordered = np.sort(_blocks(values, scale), axis=-1)  # NaN comes last
    known = np.isfinite(ordered).sum(axis=-1)
    middle = np.take_along_axis(ordered, np.maximum(known - 1, 0)[..., None] // 2, axis=-1)[..., 0]
    return np.where(2 * known >= scale * scale, middle, np.nan).astype(np.float32)


def _blocks(values: np.ndarray, scale: int) -> np.ndarray:
    rows, columns = (side // scale for side in values.shape)
    blocks = values[: rows * scale, : columns * scale].reshape(rows, scale, columns, scale)
    return blocks.transpose(0, 2, 1, 3).reshape(rows, columns, scale * scale)


class PatchStream(Dataset):
    """Triples of patches around pixels that the last round trusts: left, matching and other right patch.

    A draw takes ``group`` patches of one pair, all of whose randomness comes from (seed, draw number).
    Candidates are pixels with a disparity in the newest maps, whose left patch and matching right patch
    lie inside the images. The other patch is 1 to ``max_offset`` pixels beside the matching one, to
    either side as far as the image reaches.

    Args:
        pairs: the training pairs, by index.
        group: patches of a draw.
        patch: side of a patch, pixels, odd.
        max_offset: pixels.
        seed: of the run.
    """

    def __init__(self, pairs: Sequence[StereoPair], group: int, patch: int, max_offset: int, seed: int) -> None:
        self.pairs, self.group, self.max_offset, self.seed = pairs, group, max_offset, seed
        self.radius = patch // 2
        self.rounds: Any = None
        # All images end to end, so that patches of many pairs are gathered at once.
        self.pixels = np.concatenate(
            [standardised(image).ravel() for pair in pairs for image in (pair.left, pair.right)]
        )
        self.widths = np.array([pair.left.shape[1] for pair in pairs])
        sizes = np.array([pair.left.size for pair in pairs])
        self.begin_left = np.cumsum(2 * sizes) - 2 * sizes
        self.begin_right = self.begin_left + sizes
        self._opened: int | None = None
        self._candidates: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: Draw | int) -> dict[str, np.ndarray]:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[Draw | int]) -> dict[str, np.ndarray]:
        """A whole batch: ``left``, ``match``, ``other`` (n, 1, patch, patch) float32 and ``index`` (n,)."""
        draws = [as_draw(item) for item in items]
        chosen = [self._candidates_from(draw.index) for draw in draws]
        shares = np.stack([draw_generator(self.seed, draw.number).random((2, self.group)) for draw in draws])
        picked = np.concatenate(
            [rows[(share * len(rows)).astype(np.int64)] for (_, rows), share in zip(chosen, shares[:, 0], strict=True)]
        )
        pair = np.repeat([index for index, _ in chosen], self.group)
        y, x, x_match = picked.T
        x_other = x_match + self._offsets(x_match, self.widths[pair], shares[:, 1].ravel())
        return {
            "left": self._gather(self.begin_left[pair], self.widths[pair], y, x),
            "match": self._gather(self.begin_right[pair], self.widths[pair], y, x_match),
            "other": self._gather(self.begin_right[pair], self.widths[pair], y, x_other),
            "index": pair,
        }

    def _offsets(self, x: np.ndarray, width: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Uniform over the steps from -max_offset to max_offset that stay in the image, 0 left out."""
        back = np.minimum(self.max_offset, x - self.radius)
        ahead = np.minimum(self.max_offset, width - 1 - self.radius - x)
        step = (share * (back + ahead)).astype(np.int64) - back
        return step + (step >= 0)

    def _gather(self, begin: np.ndarray, width: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        around = np.arange(-self.radius, self.radius + 1)
        rows = (begin + y * width + x)[:, None, None] + around[:, None] * width[:, None, None]
        return self.pixels[rows + around][:, None]

    def _candidates_from(self, index: int) -> tuple[int, np.ndarray]:
        """The pair's candidates, or those of the next pair that has any, as rows (y, x, x of the match)."""
        generation = None if self.rounds is None else self.rounds.generation
        if generation is None:
            raise InputError("there are no disparities to train on: the first round must come before training")
        if generation.number != self._opened:
            self._opened, self._candidates = generation.number, {}
        for step in range(len(self)):
            other = (index + step) % len(self)
            if other not in self._candidates:
                map_ = generation[MAPS_OF][other]
                self._candidates[other] = self._find(self.pairs[other], map_, int(generation.notes["sign"]))
            if len(self._candidates[other]):
                return other, self._candidates[other]
        raise InputError(
            f"no consistent pixel is {self.radius} pixels inside both images of its pair: "
            "check rectification, sign and range, or give larger images"
        )

    def _find(self, pair: StereoPair, disparity: np.ndarray, sign: int) -> np.ndarray:
        height, width = disparity.shape
        y, x = np.nonzero(np.isfinite(disparity) & pair.valid_left)
        match = x + sign * disparity[y, x].astype(np.int64)
        r = self.radius
        fits = (y >= r) & (y < height - r) & (x >= r) & (x < width - r) & (match >= r) & (match < width - r)
        # The other patch needs one more column.
        fits &= width > 2 * r + 1
        y, x, match = y[fits], x[fits], match[fits]
        seen = pair.valid_right[y, match]
        return np.stack([y[seen], x[seen], match[seen]], axis=1)


class WholePairs(Dataset):
    """Pairs as samples, read when they are asked for."""

    def __init__(self, files: Sequence[PairFiles], reader: PairReader, sign: int) -> None:
        self.files, self.reader, self.sign = files, reader, sign

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.reader.read(self.files[index]).sample(index, self.sign)


class Spare(Dataset):
    """One pair, marked as ``spare``: for a process that has none of its own.

    Lightning passes over a process whose loader is empty, and the others then wait for it at the end of the epoch.
    """

    def __init__(self, pairs: WholePairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.pairs[0], "spare": torch.tensor(True)}


class LoadedPairs(Sequence[dict[str, Any]]):
    """Pairs in memory as samples, in the order of their index."""

    def __init__(self, pairs: Sequence[StereoPair], sign: int) -> None:
        self.pairs, self.sign = pairs, sign

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        return self.pairs[index].sample(index, self.sign)


class StereoDataModule(FolderDataModule):
    """Stereo pairs of one dataset; training reads no truth.

    Batches:

    - training: ``left``, ``match``, ``other`` (B, 1, patch, patch) float32 and ``index`` (B,) of the pair;
    - test and prediction, one pair each: ``left``, ``right`` (1, H, W) float32 of zero mean and unit
      variance; ``guide_left``, ``guide_right`` (1, H, W) raw grey values; ``valid`` (1, H, W) bool;
      ``range`` (1, 2) least and most disparity; ``sign`` (1,), 0 for auto; ``index``; ``name``; and
      ``truth`` (1, H, W), NaN where unknown, for pairs that have one. Where there are more processes than
      pairs, the others get a pair with the field ``spare`` (1,), which counts for nothing.

    Images are grey values of the file's own scale and so no uint8: satellites have more than 8 bits.

    Args:
        reader: the layout.
        root: folder of the data.
        scale: whole factor by which images shrink (box filter); disparities are divided by it, the
            thresholds of errors are not.
        disparity_sign: the match of (x, y) is (x + sign * d, y): -1, 1 or ``auto``.
        min_disp: least disparity in pixels of the files, instead of what the files say.
        max_disp: most disparity, likewise.
        train_count: pairs to train on, drawn at random, or None for all.
        test_count: further pairs to test on; None with ``train_count=None``: train and test are the same.
        split_seed: of that draw, apart from the run's seed.
        judge_on: which of the two parts the test reads.
        batch_size: patches over all processes.
        patches_per_image: patches after which another pair is drawn.
        batches_per_epoch: steps between two rounds.
        patch: side in pixels, odd.
        max_offset: of the patch that does not match, pixels.
        predict_root: folder of pairs to predict, in the layout of the reader or as ``im_left/``, ``im_right/``.
        seed: of the run.

    Raises:
        InputError: settings that make no sense.
    """

    reader: StereoReader

    def __init__(
        self,
        reader: StereoReader,
        root: str | None,
        scale: int,
        disparity_sign: Literal[-1, 1, "auto"],
        min_disp: float | None,
        max_disp: float | None,
        train_count: int | None,
        test_count: int | None,
        split_seed: int,
        judge_on: Literal["train", "test"],
        batch_size: int,
        patches_per_image: int,
        batches_per_epoch: int,
        patch: int,
        max_offset: int,
        predict_root: str | None,
        seed: int,
    ) -> None:
        super().__init__(reader, root, predict_root)
        if scale < 1:
            raise InputError(f"data.scale={scale} must be a whole number from 1 (the files' own size)")
        if patch < 3 or patch % 2 == 0:
            raise InputError(f"data.patch={patch} must be odd and 3 pixels or more")
        if batches_per_epoch < 1:
            raise InputError(f"data.batches_per_epoch={batches_per_epoch} (pace.steps) must be 1 step or more")
        if max_offset < 1:
            raise InputError(f"data.max_offset={max_offset} must be 1 pixel or more")
        if patches_per_image < 1 or batch_size < 1 or batch_size % patches_per_image:
            raise InputError(
                f"data.batch_size={batch_size} must be a multiple of data.patches_per_image={patches_per_image}"
            )
        if (train_count is None) != (test_count is None):
            raise InputError("data.train_count and data.test_count go together: give both or neither")
        self.pair_reader = PairReader(reader, scale, min_disp, max_disp)
        self.sign = 0 if disparity_sign == "auto" else int(disparity_sign)
        self.train_count, self.test_count, self.split_seed, self.judge_on = (
            train_count,
            test_count,
            split_seed,
            judge_on,
        )
        self.batch_size, self.patches_per_image, self.batches_per_epoch = (
            batch_size,
            patches_per_image,
            batches_per_epoch,
        )
        self.patch, self.max_offset, self.seed = patch, max_offset, seed
        self.stream: PatchStream | None = None
        self._test: list[PairFiles] = []
        self._to_predict: tuple[list[PairFiles], PairReader] | None = None

    def setup(self, stage: str) -> None:
        """Finds the pairs, and reads all that training needs.

        Raises:
            InputError: no pair, an image without its partner, or a pair that `PairReader` refuses.
        """
        if stage == "predict":
            self._to_predict = self._find_pairs_to_predict()
            return
        train, test = self._split(self._find_pairs())
        self._test = train if self.judge_on == "train" else test
        if stage == "fit" and self.stream is None:
            pairs = [self.pair_reader.read(files) for files in train]
            self.stream = PatchStream(pairs, self.patches_per_image, self.patch, self.max_offset, self.seed)
            for pair in pairs:
                if min(pair.left.shape) <= self.patch:
                    raise InputError(
                        f"pair {pair.name} has {pair.left.shape[0]}x{pair.left.shape[1]} pixels here: patches of "
                        f"{self.patch} pixels need larger images, or a smaller data.scale"
                    )

    def use_rounds(self, step: str, rounds: Any) -> None:
        """The patches are cut at the disparities that hold, from now on."""
        assert self.stream is not None
        self.stream.rounds = rounds

    def training_pairs(self) -> LoadedPairs:
        """The whole training pairs, by index; what a round matches."""
        assert self.stream is not None
        return LoadedPairs(self.stream.pairs, self.sign)

    def train_dataloader(self) -> EpochLoader:
        share = shared_batches(
            self.batch_size // self.patches_per_image,
            self.trainer.world_size,
            "data.batch_size / data.patches_per_image",
        )
        sampler = EpochSampler(
            len(self.stream), share, self.batches_per_epoch, self.seed, lambda: trainer_position(self.trainer)
        )
        # A batch comes out of the dataset whole. No worker processes: the gather takes a millisecond.
        return EpochLoader(self.stream, batch_size=share, sampler=sampler, collate_fn=_as_tensors, num_workers=0)

    def test_dataloader(self) -> DataLoader:
        return self._whole(self._test, self.pair_reader)

    def predict_dataloader(self) -> DataLoader:
        assert self._to_predict is not None
        return self._whole(*self._to_predict)

    def _whole(self, files: Sequence[PairFiles], reader: PairReader) -> DataLoader:
        sampler = StridedSampler(len(files), self.trainer.global_rank, self.trainer.world_size)
        pairs = WholePairs(files, reader, self.sign)
        if not len(sampler):
            return DataLoader(Spare(pairs), batch_size=1)
        return DataLoader(pairs, batch_size=1, sampler=sampler)

    def _find_pairs(self) -> list[PairFiles]:
        return self.reader.pairs(self.existing_root())

    def _split(self, pairs: list[PairFiles]) -> tuple[list[PairFiles], list[PairFiles]]:
        if self.train_count is None or self.test_count is None:
            return pairs, pairs
        wanted = self.train_count + self.test_count
        if min(self.train_count, self.test_count) < 1 or wanted > len(pairs):
            raise InputError(
                f"data.train_count={self.train_count} and data.test_count={self.test_count} must be 1 or more and "
                f"at most {len(pairs)} together, the pairs in {self.root}"
            )
        order = np.random.default_rng(self.split_seed).permutation(len(pairs))[:wanted]
        train, test = sorted(order[: self.train_count]), sorted(order[self.train_count :])
        return [pairs[place] for place in train], [pairs[place] for place in test]

    def _find_pairs_to_predict(self) -> tuple[list[PairFiles], PairReader]:
        folder = existing_folder(self.predict_root, "data.predict_root", "name the folder of the pairs to predict")
        plain = (folder / "im_left").is_dir() and (folder / "im_right").is_dir()
        layout = S2PTiles(visible_only=False) if plain else self.reader
        try:
            pairs = layout.pairs(folder)
        except InputError as error:
            if plain:
                raise
            raise InputError(
                f"data.predict_root={folder} has neither im_left/ with im_right/ nor the layout of data.reader: {error}"
            ) from None
        return pairs, PairReader(layout, self.pair_reader.scale, self.pair_reader.min_disp, self.pair_reader.max_disp)


def _as_tensors(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(values) for key, values in batch.items()}
