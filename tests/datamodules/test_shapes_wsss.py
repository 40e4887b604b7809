"""ShapesWSSS: what is generated is what it says."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from datamodules.photograph_files import Photograph
from datamodules.shapes_wsss import BADGES, ShapesWSSS, ShapesWSSSReader, badge_pattern
from runs.errors import InputError

NAMES = ("stripes", "checker", "cross")


def shapes(**changes) -> ShapesWSSS:
    settings = {
        "seed": 0,
        "class_names": NAMES,
        "train": 6,
        "val": 3,
        "side": 64,
        "half_axis": (10.0, 18.0),
        "badge": (7, 9),
        "hue": (0.25, 0.45),
        "smooth": 4.0,
    }
    return ShapesWSSS(**{**settings, **changes})


def reader(**changes) -> ShapesWSSSReader:
    settings = {
        "masks_folder": "SegmentationClass",
        "seed": 0,
        "class_names": list(NAMES),
        "train": 6,
        "val": 3,
        "side": 64,
        "half_axis": [10.0, 18.0],
        "badge": [7, 9],
        "hue": [0.25, 0.45],
        "smooth": 4.0,
    }
    return ShapesWSSSReader(**{**settings, **changes})


def hue(pixel) -> float:
    return colorsys.rgb_to_hsv(*(value / 255 for value in pixel))[0]


def test_one_or_two_objects_of_different_classes_cover_each_image():
    counts, areas = [], []
    for number in range(120):
        image, mask = shapes().picture(number)
        assert image.shape == (64, 64, 3) and mask.shape == (64, 64)
        counts.append(len(np.unique(mask)) - 1)
        areas.append((mask > 0).mean())
    assert set(counts) == {1, 2}
    assert 0.15 < np.mean(areas) < 0.3


def test_hue_tells_objects_from_background_and_bodies_are_flat():
    for number in range(20):
        image, mask = shapes().picture(number)
        background = [hue(pixel) for pixel in image[mask == 0][::37]]
        assert min(background) > 0.22 and max(background) < 0.48
        for value in np.unique(mask[mask > 0]):
            body, counts = np.unique(image[mask == value], axis=0, return_counts=True)
            most = body[counts.argmax()]
            assert not 0.25 < hue(most) < 0.45
            # Only the badge's two colours stand on the flat one.
            assert len(body) <= 3


def test_the_badge_alone_tells_the_classes_apart():
    """Body colours have one distribution in all classes; every badge is found whole in its body."""
    hues = {value: [] for value in (1, 2, 3)}
    for number in range(400):
        image, mask = shapes().picture(number)
        for value in np.unique(mask[mask > 0]):
            colours, counts = np.unique(image[mask == value], axis=0, return_counts=True)
            hues[value].append(hue(colours[counts.argmax()]))
            marked = (mask == value) & ((image == 242).all(axis=2) | (image == 13).all(axis=2))
            rows, columns = np.nonzero(marked)
            size = rows.max() - rows.min() + 1
            assert 7 <= size <= 9 and columns.max() - columns.min() + 1 == size
            patch = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1, 0]
            assert np.array_equal(patch > 127, badge_pattern(NAMES[value - 1], size))
    circular = [abs(np.exp(2j * np.pi * np.array(values)).mean()) for values in hues.values()]
    assert max(circular) - min(circular) < 0.15


def test_badges_differ_and_are_of_high_contrast():
    for size in (7, 8, 9):
        patterns = [badge_pattern(name, size) for name in BADGES]
        for i, one in enumerate(patterns):
            assert 0.2 < one.mean() < 0.8
            assert all((one != other).mean() > 0.2 for other in patterns[i + 1 :])


def test_files_are_in_vocs_layout_and_come_back_as_they_were_drawn(tmp_path):
    root = tmp_path / "shapes"
    made = reader()
    made.prepare(root)
    train, val = (made.read(root, name) for name in ("train", "val"))
    assert (len(train), len(val)) == (6, 3)
    assert isinstance(train[0], Photograph)
    for number, photograph in enumerate([*train, *val]):
        image, mask = made.shapes.picture(number)
        with Image.open(photograph.mask) as picture:
            assert picture.mode == "P" and np.array_equal(np.array(picture), mask)
        with Image.open(photograph.image) as picture:
            assert np.abs(np.array(picture).astype(int) - image).mean() < 6
        assert {NAMES.index(name) + 1 for name in photograph.classes} == set(np.unique(mask[mask > 0]).tolist())


def test_the_same_parameters_leave_the_files_and_others_replace_them(tmp_path):
    root = tmp_path / "shapes"
    reader().prepare(root)
    path = root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "shapes_000000.jpg"
    before = path.read_bytes(), path.stat().st_mtime_ns
    reader().prepare(root)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    reader(seed=1).prepare(root)
    assert path.read_bytes() != before[0]


def test_four_classes_can_be_drawn(tmp_path):
    drawn = {v for n in range(60) for v in np.unique(shapes(class_names=BADGES).picture(n)[1]).tolist()}
    assert drawn == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_names": ["stripe"]}, "there is no badge 'stripe': did you mean stripes"),
        ({"half_axis": [18.0, 10.0]}, r"data\.reader\.half_axis=\[18\.0, 10\.0\] must be \[least, most\]"),
        ({"badge": [7, 19]}, "a badge of 19 pixels does not fit"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        reader(**changes)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="holds something else than generated images"):
        reader().prepare(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "keep"
