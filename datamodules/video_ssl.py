"""Semi-supervised video classification: labelled clips, unlabelled clips at two play rates, test.

SITAR, section 4.1. What the files hold and how they are listed is a reader's business, how a clip
is decoded and cropped that of `datamodules.video_clips`; this module checks, splits and batches.
"""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

from components.seeding import derived_seed
from datamodules.clip_lists import (
    ClipReader,
    ClipRecord,
    draw_labeled,
    read_ssl_list,
)
from datamodules.folder import FolderDataModule, existing_folder
from datamodules.sampling import (
    EpochLoader,
    EpochSampler,
    StridedSampler,
    shared_batches,
    trainer_position,
    training_loader,
)
from datamodules.video_clips import Clip, ClipViews, EvaluationClips, LabeledClips, TwoRateClips
from datamodules.video_files import VIDEO_SUFFIXES, FrameSource, UnreadableVideoError, probe
from runs.errors import InputError, first_few

# One stream of draws each, so that the two loaders do not augment in step.
_LABELED_STREAM, _UNLABELED_STREAM = 0, 1
_CACHE_OVER_CELL = 1.25


class VideoSSLDataModule(FolderDataModule):
    """Labelled, unlabelled and test clips of one dataset, as batches of uint8 frames.

    Batches (shapes for one process):

    - training, ``unlabeled=False``: ``video (B, M, 3, cell_fast, cell_fast)``, ``label (B,)``,
      ``index (B,)``;
    - training, ``unlabeled=True``: ``{"labeled": <as above>, "unlabeled": {...}}`` with
      ``video_fast (mu*B, M, 3, cell_fast, cell_fast)``,
      ``video_slow (mu*B, N, 3, cell_slow, cell_slow)``, ``label`` and ``index``;
    - validation and test: ``video (B, num_eval_clips, M, 3, cell_fast, cell_fast)``, ``label``,
      ``index``;
    - prediction: ``video`` as in test, ``index``, ``name``.

    An epoch is as long as the longer of the two training lists; the shorter runs on through
    further permutations (see ``EpochSampler``).

    These datasets have no validation set. As in the published results, validation runs on the
    test list; it is there to be looked at, never to select by.

    Args:
        reader: the on-disk layout.
        root: folder of the unpacked archive.
        lists: ``official``, or a folder of SSL lists: ``labeled_training.txt`` and, where present,
            ``unlabeled_training.txt`` and ``test.txt`` (the official lists of ``split`` serve for
            the absent ones). A folder that is not absolute is sought below ``root`` too.
        split: number of the official split.
        labeled_per_class: labelled clips of each class; ``official`` lists only.
        labeled_fraction: labelled share of each class, in (0, 1]; ``official`` lists only.
        label_seed: seed of that draw.
        unlabeled: whether training batches hold unlabelled clips.
        unlabeled_includes_labeled: keep the labelled clips in the unlabelled pool.
        mu: unlabelled clips per labelled clip of a batch.
        batch_size: labelled clips of a batch over all processes.
        eval_batch_size: clips of an evaluation batch of one process.
        num_classes: classes of the model; must be what the lists hold.
        frames_fast: M, frames of the fast view.
        frames_slow: N, frames of the slow view.
        cell_fast: side of a fast frame in pixels.
        cell_slow: side of a slow frame in pixels.
        slow_sampling: ``subsample`` takes each (M/N)-th fast frame, ``independent`` draws anew.
        single_frame: control: every frame of a view is the clip's middle frame.
        crop_scales: crop sides as fractions of the short side, in (0, 1].
        crop_max_distort: how many places of ``crop_scales`` height and width may lie apart.
        flip: probability of mirroring a training clip.
        num_eval_clips: temporal views of each evaluated clip.
        cache: ``ram`` keeps decoded clips at 1.25 times the larger cell, in each loader process.
        on_missing: what to do with listed files that are missing or cannot be read.
        predict_root: folder of videos to predict, searched recursively.
        num_workers: loader processes for each loader.
        pin_memory: page-locked batches, for GPUs.
        seed: seed of the order and of the augmentation.

    Attributes:
        class_names: names by label; empty before ``setup``.

    Raises:
        InputError: see ``setup``.
    """

    reader: ClipReader

    def __init__(
        self,
        reader: ClipReader,
        root: str | None,
        lists: str,
        split: int,
        labeled_per_class: int | None,
        labeled_fraction: float | None,
        label_seed: int,
        unlabeled: bool,
        unlabeled_includes_labeled: bool,
        mu: int,
        batch_size: int,
        eval_batch_size: int,
        num_classes: int,
        frames_fast: int,
        frames_slow: int,
        cell_fast: int,
        cell_slow: int,
        slow_sampling: Literal["subsample", "independent"],
        single_frame: bool,
        crop_scales: list[float],
        crop_max_distort: int,
        flip: float,
        num_eval_clips: int,
        cache: Literal["none", "ram"],
        on_missing: Literal["error", "skip"],
        predict_root: str | None,
        num_workers: int,
        pin_memory: bool,
        seed: int,
    ) -> None:
        super().__init__(reader, root, predict_root)
        _check_views(frames_fast, frames_slow, slow_sampling, list(crop_scales), flip)
        counts = {
            "batch_size": batch_size,
            "mu": mu,
            "eval_batch_size": eval_batch_size,
            "num_eval_clips": num_eval_clips,
            "cell_fast": cell_fast,
            "cell_slow": cell_slow,
        }
        too_small = [f"data.{name}={value}" for name, value in counts.items() if value < 1]
        if too_small:
            raise InputError(f"{first_few(too_small)}: must be 1 or more")
        if num_workers < 0:
            raise InputError(f"data.num_workers={num_workers}: must be 0 (no extra process) or more")
        self.lists = lists
        self.split = split
        self.labeled_per_class = labeled_per_class
        self.labeled_fraction = labeled_fraction
        self.label_seed = label_seed
        self.unlabeled = unlabeled
        self.unlabeled_includes_labeled = unlabeled_includes_labeled
        self.mu = mu
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_classes = num_classes
        self.views = ClipViews(
            frames_fast,
            frames_slow,
            cell_fast,
            cell_slow,
            slow_sampling,
            single_frame,
            list(crop_scales),
            crop_max_distort,
            flip,
        )
        self.num_eval_clips = num_eval_clips
        self.source = FrameSource(cache, round(_CACHE_OVER_CELL * max(cell_fast, cell_slow)))
        self.on_missing = on_missing
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.seed = seed
        self.class_names: list[str] = []
        self._restored: dict[str, Any] | None = None
        self._records: dict[str, ClipRecord] = {}
        self._ids: dict[str, int] = {}
        self._labeled: list[str] = []
        self._unlabeled: list[str] = []
        self._test: list[str] = []
        self._readable: set[str] = set()
        self._to_predict: list[Clip] = []

    # -- what is on disk -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads the lists and opens every listed file that the stage will need.

        Raises:
            InputError: missing or empty root; malformed lists; unknown classes; listed files that
                are missing or give no frames (``on_missing=skip`` warns and goes on); a clip in
                both train and test; a class without labelled clips; no unlabelled clips where
                they are wanted; another number of classes than ``num_classes``.
        """
        if stage == "predict":
            self._find_videos_to_predict()
            return
        if not self._records:
            self._read_lists()
            self._check_num_classes()
        # All of them, whatever this stage reads: a later stage must not be the first to find a broken file.
        needed = self._test if stage != "fit" else [*self._labeled, *self._unlabeled, *self._test]
        self._probe_files(needed)
        if stage == "fit":
            self._check_training_lists()

    def _read_lists(self) -> None:
        root = self.existing_root()
        if not any(root.iterdir()):
            raise InputError(f"data.root={root} is empty: {self.reader.instructions}")
        known = self.reader.class_names(root)
        labeled, unlabeled, test = self._listed_clips(root, known)
        _refuse_overlap([*labeled, *unlabeled], test)
        _warn_of_shared_groups([*labeled, *unlabeled], test)
        self._records = {record.path: record for record in (*labeled, *unlabeled, *test)}
        self._ids = {path: place for place, path in enumerate(sorted(self._records))}
        self._labeled = [record.path for record in labeled]
        self._unlabeled = [record.path for record in unlabeled]
        self._test = [record.path for record in test]
        occurring = {record.class_name for record in self._records.values()}
        self.class_names = [name for name in known if name in occurring]
        if self._restored is not None:
            self._apply_state(self._restored)

    def _listed_clips(
        self, root: Path, known: list[str]
    ) -> tuple[list[ClipRecord], list[ClipRecord], list[ClipRecord]]:
        """Labelled, unlabelled and test records."""
        if self.lists == "official":
            train, test = self.reader.read_split(root, self.split)
            labeled = draw_labeled(train, self.labeled_per_class, self.labeled_fraction, self.label_seed)
        else:
            folder = self._lists_folder(root)
            labeled = read_ssl_list(folder / "labeled_training.txt", known, self.reader)
            files = folder / "unlabeled_training.txt", folder / "test.txt"
            if not all(file.exists() for file in files):
                train, test = self.reader.read_split(root, self.split)
            if files[0].exists():
                train = [*labeled, *read_ssl_list(files[0], known, self.reader)]
            if files[1].exists():
                test = read_ssl_list(files[1], known, self.reader)
        taken = set() if self.unlabeled_includes_labeled else {clip.path for clip in labeled}
        pool = {clip.path: clip for clip in train if clip.path not in taken}
        return labeled, list(pool.values()), test

    def _lists_folder(self, root: Path) -> Path:
        given = Path(self.lists).expanduser()
        for folder in (given, root / given):
            if folder.is_dir():
                return folder
        raise InputError(
            f"data.lists={self.lists} is neither 'official' nor a folder with"
            " labeled_training.txt, unlabeled_training.txt and test.txt"
        )

    def _probe_files(self, paths: list[str]) -> None:
        """Opens each file once; afterwards ``_readable`` holds those that give frames."""
        folder = self.reader.videos_folder(self.existing_root())
        new = sorted(set(paths) - self._readable)
        missing = [path for path in new if not (folder / path).is_file()]
        present = sorted(set(new) - set(missing))
        reasons = _reasons_unreadable({path: folder / path for path in present})
        broken = [f"{path} ({reason})" for path, reason in reasons.items() if reason]
        self._readable.update(path for path, reason in reasons.items() if not reason)
        problems = []
        if missing:
            problems.append(
                f"{len(missing)} of {len(new)} listed videos are missing below {folder}: {first_few(missing)}"
            )
        if broken:
            problems.append(
                f"{len(broken)} of {len(new)} listed videos below {folder} cannot be read: {first_few(broken)}"
            )
        if problems and self.on_missing == "error":
            raise InputError("; ".join(problems) + " (data.on_missing=skip trains without them)")
        for problem in problems:
            warnings.warn(f"{problem}; they are skipped", stacklevel=3)
        if paths and not self._readable.intersection(paths):
            raise InputError(f"none of the {len(set(paths))} listed videos can be read")

    def _check_training_lists(self) -> None:
        labels = {self._records[path].class_name for path in self._kept(self._labeled)}
        empty = [name for name in self.class_names if name not in labels]
        if empty:
            raise InputError(
                f"{len(empty)} of {len(self.class_names)} classes have no labelled clip:"
                f" {first_few(empty)}; data.lists={self.lists} must label each class"
            )
        if self.unlabeled and not self._kept(self._unlabeled):
            raise InputError(
                "there are no unlabelled clips left to train on: lower data.labeled_fraction or"
                " data.labeled_per_class, or set data.unlabeled_includes_labeled=true"
            )

    def _check_num_classes(self) -> None:
        if len(self.class_names) != self.num_classes and self._restored is None:
            raise InputError(
                f"the lists hold {len(self.class_names)} classes but data.num_classes is"
                f" {self.num_classes}: set data.num_classes={len(self.class_names)}"
            )

    def _find_videos_to_predict(self) -> None:
        folder = existing_folder(self.predict_root, "data.predict_root", "name the folder of the videos to predict")
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
        if not files:
            raise InputError(f"data.predict_root={folder} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
        named = {path.relative_to(folder).as_posix(): path for path in files}
        reasons = _reasons_unreadable(named)
        broken = [f"{name} ({reason})" for name, reason in reasons.items() if reason]
        if broken:
            problem = f"{len(broken)} of {len(files)} videos below {folder} cannot be read: {first_few(broken)}"
            if self.on_missing == "error" or len(broken) == len(files):
                raise InputError(f"{problem} (data.on_missing=skip predicts the others)")
            warnings.warn(f"{problem}; they are skipped", stacklevel=3)
        self._to_predict = [
            Clip(path, -1, index, name) for index, (name, path) in enumerate(named.items()) if not reasons[name]
        ]

    # -- what was learned from the lists ---------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Class names and the drawn label split, as plain values that travel in checkpoints."""
        return {
            "class_names": list(self.class_names),
            "labeled": list(self._labeled),
            "unlabeled": list(self._unlabeled),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes a checkpoint's classes and label split, before or after ``setup``.

        Raises:
            InputError: the data hold a class or lack a clip that the checkpoint does not know.
        """
        self._restored = dict(state_dict)
        self.class_names = list(state_dict["class_names"])
        if self._records:
            self._apply_state(self._restored)

    def _apply_state(self, state: dict[str, Any]) -> None:
        known = set(state["class_names"])
        strangers = sorted({self._records[path].class_name for path in self._test} - known)
        if strangers:
            raise InputError(
                f"the test clips hold {len(strangers)} classes that the checkpoint does not know:"
                f" {first_few(strangers)}"
            )
        self.class_names = list(state["class_names"])
        split = [*state["labeled"], *state["unlabeled"]]
        if all(path in self._records for path in split):
            self._labeled, self._unlabeled = list(state["labeled"]), list(state["unlabeled"])

    def sample_names(self, part: str, indices: list[int]) -> list[str]:
        """Files of training samples, for messages; the ids are those of all parts of a batch."""
        names = {number: path for path, number in self._ids.items()}
        return [names[index] for index in indices]

    # -- loaders ---------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader | CombinedLoader:
        at = trainer_position(self.trainer)
        labeled = self._clips(self._labeled)
        labeled_batches = -(-len(labeled) // self.batch_size)
        if not self.unlabeled:
            return self._training_loader(LabeledClips, labeled, self.batch_size, labeled_batches, at.world_size)
        unlabeled = self._clips(self._unlabeled)
        unlabeled_batch = self.mu * self.batch_size
        batches = max(labeled_batches, -(-len(unlabeled) // unlabeled_batch))
        loaders = {
            "labeled": self._training_loader(LabeledClips, labeled, self.batch_size, batches, at.world_size),
            "unlabeled": self._training_loader(TwoRateClips, unlabeled, unlabeled_batch, batches, at.world_size),
        }
        # Both have the same length, so "min_size" neither cuts nor cycles.
        return CombinedLoader(loaders, "min_size")

    def _training_loader(
        self,
        dataset_class: type[LabeledClips],
        clips: list[Clip],
        global_batch: int,
        batches: int,
        world_size: int,
    ) -> EpochLoader:
        stream = _LABELED_STREAM if dataset_class is LabeledClips else _UNLABELED_STREAM
        seed = derived_seed(self.seed, stream)
        sampler = EpochSampler(
            size=len(clips),
            batch_size=shared_batches(global_batch, world_size, "data.batch_size"),
            batches_per_epoch=batches,
            seed=seed,
            position=lambda: trainer_position(self.trainer),
        )
        dataset = dataset_class(clips, self.views, self.source, seed)
        return training_loader(dataset, sampler, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._clips(self._test), with_name=False)

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._clips(self._test), with_name=False)

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._to_predict, with_name=True)

    def _evaluation_loader(self, clips: list[Clip], with_name: bool) -> DataLoader:
        at = trainer_position(self.trainer)
        dataset = EvaluationClips(clips, self.views, self.source, self.num_eval_clips, with_name)
        return DataLoader(
            dataset,
            batch_size=self.eval_batch_size,
            sampler=StridedSampler(len(dataset), at.rank, at.world_size),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )

    def _kept(self, paths: list[str]) -> list[str]:
        return [path for path in paths if path in self._readable]

    def _clips(self, paths: list[str]) -> list[Clip]:
        folder = self.reader.videos_folder(self.existing_root())
        labels = {name: label for label, name in enumerate(self.class_names)}
        return [
            Clip(folder / path, labels[self._records[path].class_name], self._ids[path], path)
            for path in self._kept(paths)
        ]


def _check_views(
    frames_fast: int,
    frames_slow: int,
    slow_sampling: str,
    crop_scales: list[float],
    flip: float,
) -> None:
    if min(frames_fast, frames_slow) < 1:
        raise InputError(f"data.frames_fast={frames_fast} and data.frames_slow={frames_slow} must be at least 1")
    if slow_sampling == "subsample" and frames_fast % frames_slow:
        raise InputError(
            f"data.slow_sampling=subsample takes every k-th fast frame: data.frames_fast="
            f"{frames_fast} must be a multiple of data.frames_slow={frames_slow}"
        )
    if not crop_scales or not all(0 < scale <= 1 for scale in crop_scales):
        raise InputError(f"data.crop_scales={crop_scales} must be fractions above 0, at most 1")
    if not 0 <= flip <= 1:
        raise InputError(f"data.flip={flip} must be a probability, 0 to 1")


def _reason_unreadable(path: Path) -> str:
    """Why a file gives no frames; empty if it does. Warns of headers that promise too many."""
    try:
        found = probe(path)
    except UnreadableVideoError as error:
        return error.reason
    if 0 < found.packets < found.header_frames:
        warnings.warn(
            f"{path}: the header states {found.header_frames} frames but the file holds"
            f" {found.packets}; those that decode are used",
            stacklevel=2,
        )
    return ""


def _reasons_unreadable(files: dict[str, Path]) -> dict[str, str]:
    """Probes many files at once: the reason by name, empty where the file is readable.

    A clip of UCF101 takes 1.2 ms of processor time, all 13320 of them 16 s on one core.
    """
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        return dict(zip(files, pool.map(_reason_unreadable, files.values()), strict=True))


def _refuse_overlap(train: list[ClipRecord], test: list[ClipRecord]) -> None:
    shared = sorted({clip.path for clip in train} & {clip.path for clip in test})
    if shared:
        raise InputError(f"{len(shared)} clips are in both the training and the test list: {first_few(shared)}")


def _warn_of_shared_groups(train: list[ClipRecord], test: list[ClipRecord]) -> None:
    def groups(clips: list[ClipRecord]) -> set[tuple[str, str]]:
        return {(clip.class_name, clip.group) for clip in clips if clip.group is not None}

    shared = [f"{name} {group}" for name, group in sorted(groups(train) & groups(test))]
    if shared:
        warnings.warn(
            f"{len(shared)} recordings have clips in both the training and the test list"
            f" ({first_few(shared)}): the test score will flatter",
            stacklevel=2,
        )
