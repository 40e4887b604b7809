"""What is looked at in each photograph before a run begins."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.photograph_checks import usable_photographs
from datamodules.photograph_files import open_photograph
from runs.errors import InputError


@pytest.fixture
def photographs(tmp_path) -> dict[str, Path]:
    """One of each depth; those of 32 bits a pixel cannot become RGB without a guess."""
    pixels = np.arange(40 * 40).reshape(40, 40)
    for name, array in (
        ("good.png", pixels.astype(np.uint8)),
        ("16.png", pixels.astype(np.uint16)),
        ("i.tif", pixels.astype(np.int32)),
        ("f.tif", pixels.astype(np.float32)),
    ):
        Image.fromarray(array).save(tmp_path / name)
    return {path.name: path for path in sorted(tmp_path.iterdir())}


def test_what_is_found_usable_can_be_opened_and_the_rest_cannot(photographs):
    """Found out before the run, not in mid-training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usable = usable_photographs(photographs, "here", skip_bad=True, least_side=32)
    assert usable == ["16.png", "good.png"]
    for name, path in photographs.items():
        if name in usable:
            assert open_photograph(path).mode == "RGB"
        else:
            with pytest.raises(InputError, match="32 bits a pixel"):
                open_photograph(path)


def test_files_of_32_bits_are_named_with_the_reason_and_both_keys(photographs):
    with pytest.raises(InputError) as caught:
        usable_photographs(photographs, "here", skip_bad=False, least_side=32)
    sentence = str(caught.value)
    assert "2 of 4 photographs of here cannot be read: f.tif (32 bits a pixel), i.tif (32 bits a pixel)" in sentence
    assert "data.skip_bad=true (stages.<stage>.data.skip_bad=true where" in sentence
    with pytest.warns(UserWarning, match="f.tif .*they are left out"):
        usable_photographs(photographs, "here", skip_bad=True, least_side=32)


def test_grey_files_are_counted_those_of_16_bits_too(photographs):
    with pytest.warns(UserWarning, match="2 of 2 photographs of here are grey and become RGB: 16.png, good.png"):
        usable_photographs(photographs, "here", skip_bad=True, least_side=32)
