"""Clips as samples: which frames are drawn, how they are cropped, in training and in evaluation.

SITAR, section 3.2 (frames and play rates) and 4.1 (random scaling and cropping).
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.sampling import Draw, as_draw, draw_generator
from datamodules.segment_sampling import (
    CropBox,
    centre_crop,
    crop_to_cell,
    multi_scale_crop,
    segment_indices,
    temporal_view,
)
from datamodules.video_files import FrameSource


class Clip(NamedTuple):
    """A clip ready to be read: its file, its label, its stable sample id, its name for people."""

    path: Path
    label: int
    index: int
    name: str


class ClipViews(NamedTuple):
    """How clips are seen; one object shared by all loaders of a datamodule.

    Attributes are those of ``VideoSSLDataModule``, where their units stand.
    """

    frames_fast: int
    frames_slow: int
    cell_fast: int
    cell_slow: int
    slow_sampling: Literal["subsample", "independent"]
    single_frame: bool
    crop_scales: list[float]
    crop_max_distort: int
    flip: float


class _TrainingDraw:
    """All chance of one training sample, drawn before its file is opened.

    Nothing here depends on the file, so a sample's randomness is a function of (seed, number).
    """

    def __init__(self, views: ClipViews, seed: int, number: int) -> None:
        generator = draw_generator(seed, number)
        self.views = views
        self.fast_within = generator.random(views.frames_fast)
        self.crop_chance = generator.random(3)
        self.mirrored = bool(generator.random() < views.flip)
        self.slow_within = generator.random(views.frames_slow)

    def fast_frames(self, num_frames: int) -> np.ndarray:
        if self.views.single_frame:
            return np.full(self.views.frames_fast, num_frames // 2)
        return segment_indices(num_frames, self.fast_within)

    def two_rate_frames(self, num_frames: int) -> np.ndarray:
        """Frame numbers of the fast view, then those of the slow view."""
        fast = self.fast_frames(num_frames)
        if self.views.slow_sampling == "subsample" or self.views.single_frame:
            slow = fast[:: self.views.frames_fast // self.views.frames_slow]
        else:
            slow = segment_indices(num_frames, self.slow_within)
        return np.concatenate([fast, slow])

    def crop(self, frames: Tensor) -> CropBox:
        height, width = frames.shape[-2:]
        scales, max_distort = self.views.crop_scales, self.views.crop_max_distort
        return multi_scale_crop(height, width, scales, max_distort, self.crop_chance)


class LabeledClips(Dataset):
    """Training clips at the fast rate: ``video``, ``label``, ``index``."""

    def __init__(self, clips: list[Clip], views: ClipViews, source: FrameSource, seed: int) -> None:
        self.clips = clips
        self.views = views
        self.source = source
        self.seed = seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        draw = as_draw(item)
        clip = self.clips[draw.index]
        chance = _TrainingDraw(self.views, self.seed, draw.number)
        frames = self.source.read(clip.path, chance.fast_frames)
        box = chance.crop(frames)
        return {
            "video": crop_to_cell(frames, box, self.views.cell_fast, chance.mirrored),
            "label": clip.label,
            "index": clip.index,
        }


class TwoRateClips(LabeledClips):
    """Training clips at both rates through one crop: ``video_fast``, ``video_slow``, ...

    ``label`` is there for logging the accuracy of pseudo-labels and for nothing else.
    """

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        draw = as_draw(item)
        clip = self.clips[draw.index]
        views = self.views
        chance = _TrainingDraw(views, self.seed, draw.number)
        frames = self.source.read(clip.path, chance.two_rate_frames)
        fast, slow = frames[: views.frames_fast], frames[views.frames_fast :]
        box = chance.crop(frames)
        return {
            "video_fast": crop_to_cell(fast, box, views.cell_fast, chance.mirrored),
            "video_slow": crop_to_cell(slow, box, views.cell_slow, chance.mirrored),
            "label": clip.label,
            "index": clip.index,
        }


class EvaluationClips(Dataset):
    """Clips without chance: ``video`` (K, T, 3, h, w), ``label``, ``index``, ``name`` if asked."""

    def __init__(
        self,
        clips: list[Clip],
        views: ClipViews,
        source: FrameSource,
        num_eval_clips: int,
        with_name: bool,
    ) -> None:
        self.clips = clips
        self.views = views
        self.source = source
        self.num_eval_clips = num_eval_clips
        self.with_name = with_name

    def __len__(self) -> int:
        return len(self.clips)

    def _frames(self, num_frames: int) -> np.ndarray:
        segments, count = self.views.frames_fast, self.num_eval_clips
        if self.views.single_frame:
            return np.full(count * segments, num_frames // 2)
        views = [temporal_view(segments, view, count) for view in range(count)]
        return np.concatenate([segment_indices(num_frames, within) for within in views])

    def __getitem__(self, item: Draw | int) -> dict[str, Any]:
        clip = self.clips[as_draw(item).index]
        frames = self.source.read(clip.path, self._frames)
        box = centre_crop(*frames.shape[-2:])
        cells = crop_to_cell(frames, box, self.views.cell_fast, mirrored=False)
        sample: dict[str, Any] = {
            "video": cells.unflatten(0, (self.num_eval_clips, self.views.frames_fast)),
            "index": clip.index,
        }
        if self.with_name:
            return sample | {"name": clip.name}
        return sample | {"label": clip.label}
