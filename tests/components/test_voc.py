"""VOC's colour map and masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from components.voc import CLASS_NAMES, PALETTE, VOID, overlay, overlay_row, palette_image, read_mask
from runs.errors import InputError


def test_the_palette_is_that_of_real_voc_masks(sample_data):
    folder = sample_data / "coco128_voc" / "VOCdevkit" / "VOC2012" / "SegmentationClass"
    path = next(iter(sorted(folder.glob("*.png"))))
    with Image.open(path) as picture:
        real = np.array(picture.getpalette()).reshape(-1, 3)
    assert np.array_equal(PALETTE[:21], real[:21]) and np.array_equal(PALETTE[255], real[255])


def test_known_colours_of_the_map():
    assert len(CLASS_NAMES) == 20
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    for value, colour in {**known, VOID: (224, 224, 192)}.items():
        assert tuple(PALETTE[value]) == colour
    assert len(np.unique(PALETTE, axis=0)) == 256


def mask() -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 21, (7, 9)).astype(np.uint8)
    values[0, 0] = VOID
    return values


def test_a_palette_mask_comes_back_as_it_was_written(tmp_path):
    palette_image(mask()).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png", 21), mask())
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"


def test_an_rgb_mask_is_decoded_by_colour_with_a_warning(tmp_path):
    palette_image(mask()).convert("RGB").save(tmp_path / "rgb.png")
    with pytest.warns(UserWarning, match=r"rgb\.png is an RGB picture"):
        assert np.array_equal(read_mask(tmp_path / "rgb.png", 21), mask())


def test_a_colour_that_is_no_class_is_named(tmp_path):
    pixels = PALETTE[mask()].copy()
    pixels[3, 3] = (1, 2, 3)
    Image.fromarray(pixels).save(tmp_path / "odd.png")
    with (
        pytest.warns(UserWarning),
        pytest.raises(InputError, match=r"odd\.png holds colours .*: \(1, 2, 3\)"),
    ):
        read_mask(tmp_path / "odd.png", 21)


def test_a_value_that_is_no_class_is_named(tmp_path):
    palette_image(np.full((2, 2), 37)).save(tmp_path / "far.png")
    with pytest.raises(InputError, match=r"far\.png holds the values 37: expected 0 to 20, or 255"):
        read_mask(tmp_path / "far.png", 21)


def test_a_broken_mask_is_one_sentence(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        read_mask(tmp_path / "broken.png", 21)


def test_an_overlay_leaves_the_background_as_it_is():
    image = np.full((2, 2, 3), 100, np.uint8)
    shown = overlay(image, np.array([[0, 1], [0, 0]]), opacity=0.5)
    assert shown[0, 0].tolist() == [100, 100, 100] and shown[0, 1].tolist() == [114, 50, 50]


def test_a_row_is_the_image_and_then_each_mask_over_it_under_its_caption():
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    masks = {"seeds": torch.ones(4, 5, dtype=torch.int64), "truth": torch.full((4, 5), VOID, dtype=torch.uint8)}
    row = overlay_row(image, "a.jpg", masks)
    assert [caption for _, caption in row] == ["a.jpg", "seeds", "truth"]
    pixels = np.array([[[int(image[c, y, x]) for c in range(3)] for x in range(5)] for y in range(4)], np.uint8)
    assert np.array_equal(row[0][0], pixels)
    for (shown, _), mask in zip(row[1:], masks.values(), strict=True):
        assert shown.dtype == np.uint8 and np.array_equal(shown, overlay(pixels, mask.numpy()))
