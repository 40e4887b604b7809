"""Guides of single photographs: sources, their order, sizes and what no guide may be."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from scipy.ndimage import label
from skimage.segmentation import felzenszwalb, slic

from components.metrics.regions import resize_labels
from datamodules.bsds_files import BSDSImage
from datamodules.superpixels import SLIC, Felzenszwalb, Superpixels
from runs.errors import InputError

HEIGHT, WIDTH = 24, 36
SIZE = (HEIGHT, WIDTH)


def superpixels(source: str = "auto", **changes) -> Superpixels:
    settings = {
        "folder": "guides",
        "ucm_threshold": 0.06,
        "felzenszwalb": Felzenszwalb(10.0, 0.5, 20),
        "slic": SLIC(20, 10.0),
    }
    return Superpixels(source, **{**settings, **changes})


@pytest.fixture
def pixels() -> np.ndarray:
    random = np.random.default_rng(0)
    blocks = random.integers(0, 255, (4, 6, 3)).repeat(6, axis=0).repeat(6, axis=1)
    return np.clip(blocks + random.normal(0, 8, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)


@pytest.fixture
def image(tmp_path, pixels) -> BSDSImage:
    Image.fromarray(pixels).save(tmp_path / "2018.png")
    return BSDSImage("2018", tmp_path / "2018.png", (), tmp_path / "ucm2" / "2018.mat")


def write_mat(root: Path, labels: np.ndarray) -> None:
    (root / "guides").mkdir(exist_ok=True)
    savemat(root / "guides" / "2018.mat", {"seg_lab": labels.astype(np.uint16)})


def write_ucm2(root: Path) -> np.ndarray:
    ucm2 = np.zeros((2 * HEIGHT + 1, 2 * WIDTH + 1))
    ucm2[:, 2 * 10], ucm2[:, 2 * 30], ucm2[2 * 5] = 0.5, 0.05, 0.2
    (root / "ucm2").mkdir(exist_ok=True)
    savemat(root / "ucm2" / "2018.mat", {"ucm2": ucm2})
    return ucm2


def same_regions(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = len(np.unique(np.stack([a.ravel(), b.ravel()]), axis=1).T)
    return a.shape == b.shape and pairs == len(np.unique(a)) == len(np.unique(b))


def test_the_order_of_sources_is_mat_then_ucm_then_felzenszwalb(tmp_path, image, pixels):
    guides = superpixels()
    assert guides.source_of(tmp_path, image) == "felzenszwalb"
    assert same_regions(guides.guide(tmp_path, image, pixels, SIZE), felzenszwalb(pixels, 10.0, 0.5, 20))
    write_ucm2(tmp_path)
    assert guides.source_of(tmp_path, image) == "ucm"
    assert guides.guide(tmp_path, image, pixels, SIZE).max() + 1 == 4  # the wall of 0.05 does not count
    labels = np.arange(HEIGHT * WIDTH).reshape(SIZE) // 100 * 3 + 7  # gaps between the numbers
    write_mat(tmp_path, labels)
    assert guides.source_of(tmp_path, image) == "mat"
    guide = guides.guide(tmp_path, image, pixels, SIZE)
    assert same_regions(guide, labels) and sorted(np.unique(guide)) == list(range(9))


def test_a_named_source_is_taken_whatever_else_there_is(tmp_path, image, pixels):
    write_mat(tmp_path, np.arange(HEIGHT * WIDTH).reshape(SIZE) // 100)
    write_ucm2(tmp_path)
    guide = superpixels("slic").guide(tmp_path, image, pixels, SIZE)
    assert same_regions(guide, slic(pixels, n_segments=20, compactness=10.0))
    assert superpixels("ucm").guide(tmp_path, image, pixels, SIZE).max() + 1 == 4
    assert superpixels("ucm", ucm_threshold=0.04).guide(tmp_path, image, pixels, SIZE).max() + 1 == 6


def test_superpixels_of_files_are_taken_under_the_pixel_centres_at_another_scale(tmp_path, image, pixels):
    labels = np.arange(HEIGHT * WIDTH).reshape(SIZE) // 50
    write_mat(tmp_path, labels)
    small = pixels[::2, ::2]
    guide = superpixels("mat").guide(tmp_path, image, small, SIZE)
    assert same_regions(guide, resize_labels(labels, (12, 18)))
    assert sorted(np.unique(guide)) == list(range(guide.max() + 1))  # those that vanished leave no gap


def test_superpixels_that_are_made_here_see_the_pixels_as_they_are_segmented(tmp_path, image, pixels):
    small = pixels[::2, ::2]
    guide = superpixels("felzenszwalb").guide(tmp_path, image, small, SIZE)
    assert same_regions(guide, felzenszwalb(small, 10.0, 0.5, 20))


def test_a_missing_file_of_a_named_source_stops_with_its_name(tmp_path, image, pixels):
    with pytest.raises(InputError, match=r"1 of 1 images have no superpixel file: .*guides/2018\.mat"):
        superpixels("mat").check(tmp_path, [image])
    with pytest.raises(InputError, match=r"there is no .*guides/2018\.mat"):
        superpixels("mat").guide(tmp_path, image, pixels, SIZE)
    with pytest.raises(InputError, match=r"ucm2 files are missing: .*ucm2/2018\.mat"):
        superpixels("ucm").check(tmp_path, [image])
    superpixels("auto").check(tmp_path, [image])


@pytest.mark.parametrize("source", ["mat", "ucm"])
def test_a_photograph_without_files_is_told_the_way_out(tmp_path, image, source):
    """As in a prediction, whose layout has no hierarchies."""
    with pytest.raises(InputError, match=r"set data\.superpixels\.source to auto, felzenszwalb or slic"):
        superpixels(source).check(tmp_path, [replace(image, ucm2=None)])


def test_superpixels_of_another_size_stop_with_both_sizes(tmp_path, image, pixels):
    write_mat(tmp_path, np.arange(24 * 35).reshape(24, 35) // 50)
    with pytest.raises(InputError, match=r"2018\.mat is for an image of 24x35 .*24x36"):
        superpixels("mat").guide(tmp_path, image, pixels, SIZE)


@pytest.mark.parametrize("labels", [np.zeros(SIZE), np.arange(HEIGHT * WIDTH).reshape(SIZE)])
def test_one_superpixel_or_one_for_each_pixel_is_refused(tmp_path, image, pixels, labels):
    write_mat(tmp_path, labels)
    count = len(np.unique(labels))
    with pytest.raises(InputError, match=rf"2018\.png from source mat has {count} superpixels on 864 pixels"):
        superpixels("mat").guide(tmp_path, image, pixels, SIZE)


def test_a_plain_picture_has_one_superpixel(tmp_path, image):
    plain = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    guide = superpixels("felzenszwalb").guide(tmp_path, image, plain, SIZE)
    assert guide.shape == SIZE and not guide.any()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Felzenszwalb(0.0, 0.5, 20), r"data\.superpixels\.felzenszwalb: scale=0\.0 must be above 0"),
        (lambda: Felzenszwalb(10.0, -0.5, 20), r"sigma=-0\.5 0 or more"),
        (lambda: Felzenszwalb(10.0, 0.5, 0), r"min_size=0 1 or more"),
        (lambda: SLIC(1, 10.0), r"data\.superpixels\.slic: segments=1 must be 2 or more"),
        (lambda: SLIC(20, 0.0), r"compactness=0\.0 above 0"),
    ],
)
def test_settings_that_make_no_superpixels_are_refused(build, sentence):
    with pytest.raises(InputError, match=sentence):
        build()


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_a_threshold_that_leaves_nothing_is_refused(threshold):
    with pytest.raises(InputError, match=r"data\.superpixels\.ucm_threshold"):
        superpixels("ucm", ucm_threshold=threshold)


def test_guides_are_connected_where_they_are_made_here(tmp_path, image, pixels):
    for source in ("felzenszwalb", "slic"):
        guide = superpixels(source).guide(tmp_path, image, pixels, SIZE)
        assert all(label(guide == k, np.ones((3, 3)))[1] == 1 for k in range(guide.max() + 1))
