"""The generated shapes: hue is the class, lightness is not, files are what official readers read."""

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from components.voc import read_mask
from datamodules.coloured_shapes import (
    SHAPES,
    ColouredShapes,
    ColouredShapesReader,
    ColouredShapesVOCReader,
    inside,
)
from datamodules.photograph_files import open_photograph
from runs.composition import compose_config
from runs.errors import InputError


def shapes(**changes: object) -> ColouredShapes:
    """Those of the demo, fewer."""
    config = compose_config(["experiment=gan_colorization_demo", "paths.run_dir=unused"]).coloured_shapes
    values = {key: config[key] for key in config if key != "_target_"}
    values = {key: list(value) if not isinstance(value, (int, float)) else value for key, value in values.items()}
    return ColouredShapes(**{**values, "unlabelled": 4, "held_out": 3, "train": 3, "test": 2, **changes})


def measured(count: int = 60) -> list[tuple[int, float, float, float]]:
    """Class, mean lightness, mean chroma and hue in degrees of each shape of some pictures."""
    found, generated = [], shapes()
    for number in range(count):
        image, mask = generated.picture("train2014", number)
        lab = rgb2lab(image)
        for value in np.unique(mask[mask > 0]):
            lightness, a, b = lab[mask == value].mean(axis=0)
            found.append((int(value) - 1, lightness, np.hypot(a, b), np.degrees(np.arctan2(b, a)) % 360))
    return found


def test_hue_tells_the_class_and_lightness_does_not():
    found = measured()
    assert {label for label, *_ in found} == set(range(5))
    for label, lightness, chroma, hue in found:
        # Two shapes of one class in one picture have a mean hue and a smaller chroma.
        assert abs((hue - 72 * label + 180) % 360 - 180) <= 10.5
        assert 29 < chroma < 30.6 or chroma < 30
        assert 54 < lightness < 71
    by_class = [np.mean([light for k, light, *_ in found if k == label]) for label in range(5)]
    assert np.ptp(by_class) < 4  # of 15: no class is the light one


def test_the_ground_is_grey_and_darker_than_all_shapes():
    image, mask = shapes().picture("test2014", 1)
    ground = rgb2lab(image)[mask == 0]
    assert np.abs(ground[:, 1:]).max() < 1.5  # 8 bits: dark greys lie far apart
    assert ground[:, 0].max() < 50 and ground[:, 0].std() > 1


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fit_into_their_circle_and_differ(name):
    v, u = np.mgrid[-1.2:1.2:121j, -1.2:1.2:121j]
    body = inside(name, u, v)
    assert not body[np.hypot(u, v) > 1.0001].any() and body.mean() > 0.1
    for other in SHAPES:
        if other != name:
            assert (body ^ inside(other, u, v)).sum() > 0.15 * body.sum()


def test_equal_values_give_equal_files_and_no_part_repeats_another(tmp_path):
    first, second = shapes(), shapes()
    for part in ("train2014", "test2014", "train", "test"):
        assert np.array_equal(first.picture(part, 3)[0], second.picture(part, 3)[0])
    parts = ("train2014", "test2014", "train", "test")
    pictures = {first.picture(part, number)[0].tobytes() for part in parts for number in range(5)}
    assert len(pictures) == 20
    assert not np.array_equal(first.picture("train", 0)[0], shapes(seed=1).picture("train", 0)[0])


def test_the_files_are_read_by_the_readers_of_coco_and_voc(tmp_path):
    generated = shapes()
    root = tmp_path / "shapes"
    pretext = ColouredShapesReader(generated, 1, 0)
    pretext.prepare(root)
    parts = pretext.read(root)
    assert (len(parts.train), len(parts.val), len(parts.test)) == (4, 1, 2)
    assert parts.train[0] == "train2014/COCO_train2014_000000000001.jpg"
    reader = ColouredShapesVOCReader("SegmentationClass", generated)
    reader.prepare(root)  # the same set: nothing is written again
    for part, count in (("train", 3), ("test", 2)):
        photographs = reader.read(root, part)
        assert len(photographs) == count
        for number, photograph in enumerate(photographs):
            image, mask = generated.picture(part, number)
            assert np.array_equal(read_mask(photograph.mask, 6), mask)
            assert set(photograph.classes) == {SHAPES[value - 1] for value in np.unique(mask[mask > 0])}
            stored = np.asarray(open_photograph(photograph.image)).astype(int)
            assert np.abs(stored - image).mean() < 4  # JPEG
    with Image.open(root / parts.train[0]) as picture:
        assert picture.format == "JPEG" and picture.size == (64, 64)


def test_bad_values_are_answered_in_words():
    with pytest.raises(InputError, match="there is no shape 'cirle': did you mean circle"):
        shapes(class_names=["cirle"])
    with pytest.raises(InputError, match=r"coloured_shapes.radius=\[9, 3\] must be \[least, most\]"):
        shapes(radius=[9, 3])
