"""Segments, temporal views and crops against computations written out by hand."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as pixels

from datamodules.segment_sampling import (
    CropBox,
    centre_crop,
    crop_to_cell,
    multi_scale_crop,
    segment_indices,
    temporal_view,
)


def segments_by_hand(num_frames: int, segments: int) -> list[list[int]]:
    """The frames of each segment: ``f`` is in the last segment that begins at or before it."""
    starts = [j * num_frames // segments for j in range(segments)]
    return [[f for f in range(num_frames) if starts[j] <= f < ([*starts, num_frames])[j + 1]] for j in range(segments)]


@pytest.mark.parametrize("num_frames", [1, 3, 7, 8, 9, 16, 29, 100, 371])
@pytest.mark.parametrize("segments", [4, 8, 16])
def test_one_frame_comes_from_each_segment(num_frames: int, segments: int) -> None:
    by_hand = segments_by_hand(num_frames, segments)
    generator = np.random.default_rng(0)
    reached: list[set[int]] = [set() for _ in range(segments)]
    for _ in range(400 if num_frames < 40 else 50):
        indices = segment_indices(num_frames, generator.random(segments))
        for j, index in enumerate(indices):
            allowed = by_hand[j] or [j * num_frames // segments]
            assert index in allowed
            reached[j].add(int(index))
    if 8 <= num_frames < 40:
        assert reached == [set(s) or {j * num_frames // segments} for j, s in enumerate(by_hand)]


def test_short_clips_repeat_frames_evenly() -> None:
    assert segment_indices(3, np.full(8, 0.99)).tolist() == [j * 3 // 8 for j in range(8)]


def test_evaluation_takes_the_centre_of_each_segment() -> None:
    centres = segment_indices(80, temporal_view(8, 0, 1))
    assert centres.tolist() == [5, 15, 25, 35, 45, 55, 65, 75]


def test_several_views_share_the_segments_out_evenly() -> None:
    views = [segment_indices(80, temporal_view(8, view, 5)) for view in range(5)]
    assert [view[0] for view in views] == [1, 3, 5, 7, 9]


def test_crops_stay_inside_and_take_neighbouring_scales() -> None:
    scales = [1.0, 0.875, 0.75, 0.66]
    sides = [240, 210, 180, 158]
    generator = np.random.default_rng(0)
    found = set()
    for _ in range(2000):
        top, left, height, width = multi_scale_crop(240, 320, scales, 1, generator.random(3))
        assert 0 <= top <= 240 - height
        assert 0 <= left <= 320 - width
        found.add((height, width))
    allowed = {(a, b) for i, a in enumerate(sides) for j, b in enumerate(sides) if abs(i - j) <= 1}
    assert found == allowed


def test_no_distortion_gives_squares() -> None:
    for chance in np.random.default_rng(0).random((50, 3)):
        _, _, height, width = multi_scale_crop(240, 320, [1.0, 0.5], 0, chance)
        assert height == width


def test_the_centre_crop_is_what_resizing_the_short_side_would_keep() -> None:
    video = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    ours = crop_to_cell(video, centre_crop(96, 128), 48, mirrored=False)
    usual = pixels.center_crop(pixels.resize(video, [48], antialias=True), [48, 48])
    # The outermost pixels differ: there the usual way also sees what is cropped off.
    assert (ours.int() - usual.int())[..., 2:-2].abs().max() <= 1


def test_mirroring_flips_left_and_right_of_every_frame() -> None:
    video = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    box = CropBox(2, 5, 16, 16)
    plain = crop_to_cell(video, box, 8, mirrored=False)
    mirrored = crop_to_cell(video, box, 8, mirrored=True)
    assert torch.equal(mirrored, plain.flip(-1))
    assert mirrored.is_contiguous()
