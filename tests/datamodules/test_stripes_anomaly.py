"""Generated stripes: what is drawn is what it says, and it lies in KolektorSDD2's layout."""

import numpy as np
import pytest

from datamodules.stripes_anomaly import StripesAnomalyReader
from runs.errors import InputError


def reader(**changes) -> StripesAnomalyReader:
    settings = {
        "val_split": 0.0,
        "split_seed": 0,
        "seed": 0,
        "train_normal": 4,
        "train_defective": 3,
        "test_normal": 2,
        "test_defective": 3,
        "side": 64,
        "period": 9.0,
        "amplitude": 0.15,
        "noise": 0.02,
        "smooth": 3.0,
        "kinds": ["disc", "scratch", "patch"],
        "contrast": 0.35,
        "radius": [4, 9],
        "scratch_width": 4.0,
        "scratch_length": [20, 30],
        "patch_side": [12, 20],
    }
    return StripesAnomalyReader(**{**settings, **changes})


def test_files_lie_in_the_official_layout_and_are_read_back(tmp_path):
    root = tmp_path / "stripes"
    reader().prepare(root)
    splits = reader().read(root, None, None, "supervised")
    assert [image.defective for image in splits.train] == [False] * 4 + [True] * 3
    assert [image.defective for image in splits.test] == [False] * 2 + [True] * 3
    before = {path: path.read_bytes() for path in root.rglob("*.png")}
    reader().prepare(root)
    assert len(before) == 24 and all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("kind", ["disc", "scratch"])
def test_a_defect_changes_its_pixels_by_the_contrast_and_no_others(kind):
    stripes = reader().stripes
    for number in range(5):
        image, mask = stripes.picture(number, kind)
        clean, none = stripes.picture(number, None)
        assert not none.any() and 20 < mask.sum() < 300
        assert np.array_equal(image[~mask], clean[~mask])
        change = (image.astype(int) - clean)[mask] / 255
        inside = (image[mask] > 0) & (image[mask] < 255)
        assert np.allclose(np.abs(change[inside]), 0.35, atol=0.01)


def test_a_patch_turns_the_stripes_without_changing_the_brightness():
    stripes = reader().stripes
    for number in range(5):
        image, mask = stripes.picture(number, "patch")
        clean, _ = stripes.picture(number, None)
        assert np.array_equal(image[~mask], clean[~mask]) and (image[mask] != clean[mask]).mean() > 0.8
        rows, columns = np.nonzero(mask)
        patch = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(float)
        assert patch.mean(axis=1).std() > 2 * patch.mean(axis=0).std()  # stripes lie now


def test_the_stripes_have_their_period():
    image, _ = reader(side=90, noise=0.001).stripes.picture(0, None)
    spectrum = np.abs(np.fft.rfft(image.mean(axis=0) - image.mean()))
    assert spectrum.argmax() == 90 / 9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"kinds": ["disk"]}, "there is no defect 'disk': did you mean disc"),
        ({"radius": [9, 4]}, r"data\.reader\.radius=\[9, 4\] must be \[least, most\]"),
        ({"patch_side": [12, 64]}, r"below data\.reader\.side=64"),
    ],
)
def test_settings_that_make_no_sense_are_answered(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        reader(**changes)
