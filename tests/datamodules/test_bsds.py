"""Berkeley's layouts, read from files that are written here by other code; and what stops a run before it starts."""

import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.ndimage import label

from components.metrics.regions import boundary, region_scores
from components.ucm import ucm_regions
from datamodules.bsds import BSDSDataModule, ImagesWithSettings, WalkSampler
from datamodules.bsds_files import (
    BSDS300Reader,
    BSDS500Reader,
    PhotographFolderReader,
    chosen,
    read_ground_truth,
    read_seg,
    read_superpixels,
    read_ucm2,
)
from datamodules.sampling import EpochPosition
from datamodules.superpixels import SLIC, Felzenszwalb, Superpixels
from datamodules.voronoi_textures import VoronoiTextures, VoronoiTexturesReader
from runs.errors import InputError

IDS = ("2018", "12003", "8068")
HEIGHT, WIDTH = 20, 30


def superpixels(**changes) -> Superpixels:
    settings = {
        "source": "felzenszwalb",
        "folder": "dic_superpixel",
        "ucm_threshold": 0.06,
        "felzenszwalb": Felzenszwalb(10.0, 0.5, 20),
        "slic": SLIC(20, 10.0),
    }
    return Superpixels(**{**settings, **changes})


def datamodule(root: Path | None, **changes) -> BSDSDataModule:
    settings = {
        "reader": BSDS500Reader(),
        "root": root,
        "splits": ["test"],
        "images": None,
        "limit": None,
        "scale": 1.0,
        "superpixels": superpixels(),
        "predict_root": None,
        "num_workers": 0,
    }
    return BSDSDataModule(**{**settings, **changes})


def attached(module: BSDSDataModule, model: object = None, rank: int = 0, world_size: int = 1, done: int = 0):
    """The datamodule as a trainer of these processes holds it, with so many batches done."""
    batches = SimpleNamespace(is_last_batch=False, current=SimpleNamespace(processed=done))
    loop = SimpleNamespace(
        epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0, ready=0)),
        epoch_loop=SimpleNamespace(batch_progress=batches),
    )
    module.trainer = SimpleNamespace(
        lightning_module=model, global_rank=rank, world_size=world_size, fit_loop=loop, predicting=False
    )
    return module


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    random = np.random.default_rng(seed)
    pixels = np.where(np.arange(width) < width // 2, 60, 190)[None, :, None] + random.normal(0, 20, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def some_map(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 5, (height, width)).astype(np.uint16)


def write_truth(path: Path, maps: list[np.ndarray]) -> None:
    cells = np.empty((1, len(maps)), dtype=object)
    for place, labels in enumerate(maps):
        cells[0, place] = {"Segmentation": labels, "Boundaries": boundary(labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": cells})


@pytest.fixture
def bsds500(tmp_path) -> Path:
    """Three photographs of the test split, with two human maps each, and superpixels."""
    data = tmp_path / "BSDS500" / "data"
    (data / "images" / "test").mkdir(parents=True)
    (tmp_path / "dic_superpixel").mkdir()
    for number, name in enumerate(IDS):
        Image.fromarray(picture(number)).save(data / "images" / "test" / f"{name}.jpg")
        write_truth(data / "groundTruth" / "test" / f"{name}.mat", [some_map(number), some_map(number + 10)])
        columns = np.arange(WIDTH) // 5
        savemat(tmp_path / "dic_superpixel" / f"{name}.mat", {"seg_lab": np.tile(columns + 1, (HEIGHT, 1))})
    return tmp_path


def images_of(module: BSDSDataModule):
    return attached(module).test_dataloader().dataset


# ---- BSDS500 ---------------------------------------------------------------------------------------


def test_bsds500_is_read_with_all_human_maps_at_full_size(bsds500):
    module = datamodule(bsds500, scale=0.5)
    module.setup("fit")
    samples = list(images_of(module))
    assert [sample["name"] for sample in samples] == ["2018", "8068", "12003"]  # by rising id
    for sample in samples:
        seed = IDS.index(sample["name"])
        assert sample["image"].shape == (3, 10, 15) and sample["image"].dtype == torch.uint8
        assert sample["guide"].shape == (10, 15) and sample["guide"].dtype == torch.int64
        assert sample["size"] == (HEIGHT, WIDTH)
        assert [m.tolist() for m in sample["human"]] == [some_map(seed).tolist(), some_map(seed + 10).tolist()]
        guide = sample["guide"]
        assert sorted(guide.unique().tolist()) == list(range(int(guide.max()) + 1))
        assert sample["guide_source"] == "felzenszwalb" and "ucm2" not in sample and "setting" not in sample
    assert [sample["index"].tolist() for sample in samples] == [[0], [1], [2]]


def test_the_folder_bsds500_itself_may_be_the_root(bsds500):
    module = datamodule(bsds500 / "BSDS500")
    module.setup("fit")
    assert len(images_of(module)) == 3


def test_images_are_named_and_limited(bsds500):
    module = datamodule(bsds500, images=[8068, "2018", 12003], limit=2)
    module.setup("fit")
    assert [sample["name"] for sample in images_of(module)] == ["8068", "2018"]


def test_real_files_of_bsds500_are_read(sample_data):
    root = sample_data / "bsds500"
    module = datamodule(root, splits=["train", "val"], superpixels=superpixels(source="auto"))
    module.setup("fit")
    facts = {s["name"]: (s["guide_source"], int(s["guide"].max()) + 1, len(s["human"])) for s in images_of(module)}
    # The numbers of the superpixels are those that came with the files.
    assert facts == {
        "2092": ("mat", 912, 7),
        "8049": ("mat", 758, 5),
        "3096": ("mat", 1356, 5),
        "8023": ("mat", 879, 5),
    }


def test_guides_of_real_hierarchies_have_277_regions_on_average(sample_data):
    root = sample_data / "bsds500"
    reader = BSDS500Reader()
    images = reader.images(root, ["test"])
    guides = [superpixels(source="ucm").from_file(root, image, _size(image.image)) for image in images]
    assert len(images) == 20
    assert np.mean([guide.max() + 1 for guide in guides]) == pytest.approx(277, abs=0.5)


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as opened:
        return opened.size[::-1]


# ---- BSDS300 ---------------------------------------------------------------------------------------


def write_seg(path: Path, labels: np.ndarray, **header) -> None:
    """The format by its description: a header, then runs of equal labels along each row."""
    height, width = labels.shape
    facts = {"format": "ascii cr", "date": "Thu Apr 05 12:47:15 2001", "image": path.stem, "user": path.parent.name}
    facts |= {"width": width, "height": height, "segments": int(labels.max()) + 1}
    facts |= {"gray": 0, "invert": 0, "flipflop": 0} | header
    lines = [f"{key} {value}" for key, value in facts.items() if value is not None] + ["data"]
    for y, row in enumerate(labels.tolist()):
        begin = 0
        for x in range(1, width + 1):
            if x == width or row[x] != row[begin]:
                lines.append(f"{row[begin]} {y} {begin} {x - 1}")
                begin = x
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def bsds300(tmp_path) -> Path:
    top = tmp_path / "BSDS300"
    for split, name in (("train", "2092"), ("test", "3096")):
        (top / "images" / split).mkdir(parents=True)
        Image.fromarray(picture(int(name))).save(top / "images" / split / f"{name}.jpg")
        for kind, user in (("color", 1102), ("color", 1103), ("gray", 1104)):
            write_seg(top / "human" / kind / str(user) / f"{name}.seg", some_map(user).astype(int) - 1)
    return tmp_path


@pytest.mark.parametrize(("human", "users"), [("color", [1102, 1103]), ("gray", [1104]), ("all", [1102, 1103, 1104])])
def test_bsds300_is_read_with_the_human_maps_of_each_user(bsds300, human, users):
    module = datamodule(bsds300, reader=BSDS300Reader(human), splits=["train", "test"])
    module.setup("fit")
    samples = list(images_of(module))
    assert [sample["name"] for sample in samples] == ["2092", "3096"]
    for sample in samples:
        assert [m.tolist() for m in sample["human"]] == [(some_map(user).astype(int) - 1).tolist() for user in users]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "ascii"}, "must say 'format ascii cr'"),
        ({"width": None}, "whole numbers for width, height"),
        ({"segments": 2}, r"runs do not fit 2 segments of 20x30"),
        ({"height": 19}, r"runs do not fit .* 19x30"),
        ({"width": 31}, "20 pixels are in no run"),
        ({"flipflop": 1}, "mirrored picture"),
    ],
)
def test_broken_seg_files_are_named(tmp_path, change, sentence):
    path = tmp_path / "1102" / "2092.seg"
    write_seg(path, some_map(0).astype(int) - 1, **change)
    with pytest.raises(InputError, match=f"2092.seg.*{sentence}"):
        read_seg(path)


def test_seg_files_with_overlapping_or_broken_runs_are_named(tmp_path):
    path = tmp_path / "2092.seg"
    write_seg(path, np.zeros((2, 3), int))
    path.write_text(path.read_text() + "0 1 0 0\n")
    with pytest.raises(InputError, match="0 pixels are in no run and 1 in several"):
        read_seg(path)
    path.write_text(path.read_text() + "0 1\n")
    with pytest.raises(InputError, match="four whole numbers"):
        read_seg(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_seg(path)


# ---- MATLAB files ------------------------------------------------------------------------------------


def hierarchy(height: int = 4, width: int = 6) -> np.ndarray:
    """A (2H+1, 2W+1) hierarchy: an outer frame of 1, a strong wall in the middle, a weak one in each half."""
    ucm2 = np.zeros((2 * height + 1, 2 * width + 1))
    ucm2[:, width] = 0.8
    ucm2[height, :width] = 0.3
    ucm2[height, width + 1 :] = 0.1
    ucm2[[0, -1]] = ucm2[:, [0, -1]] = 1
    return ucm2


@pytest.mark.parametrize(("threshold", "regions"), [(0.05, 4), (0.1, 3), (0.2, 3), (0.3, 2), (0.7, 2), (0.8, 1)])
def test_regions_of_a_hierarchy_are_what_no_stronger_wall_parts(threshold, regions):
    labels = ucm_regions(hierarchy(), threshold)
    assert labels.shape == (4, 6) and sorted(np.unique(labels)) == list(range(regions))
    top, bottom, left, right = slice(0, 2), slice(2, 4), slice(0, 3), slice(3, 6)
    quarters = [labels[rows, columns] for rows in (top, bottom) for columns in (left, right)]
    assert all(len(np.unique(quarter)) == 1 for quarter in quarters)
    parted = [quarters[0][0, 0] != quarters[1][0, 0], quarters[0][0, 0] != quarters[2][0, 0]]
    assert parted == [threshold < 0.8, threshold < 0.3]


def test_regions_meet_at_corners():
    """Components are 8-connected: two pixels that touch at an open corner are one region."""
    ucm2 = np.zeros((5, 5))
    ucm2[2, 1] = ucm2[2, 3] = ucm2[1, 2] = ucm2[3, 2] = 1  # walls between all neighbours, the crossing is open
    ucm2[[0, -1]] = ucm2[:, [0, -1]] = 1
    assert ucm_regions(ucm2, 0.5).max() == 0
    assert label(ucm2 <= 0.5)[1] == 5  # 4-connected ones do not: four pixels and the crossing


def test_what_is_no_hierarchy_is_refused(tmp_path):
    with pytest.raises(InputError, match="boundaries are between pixels"):
        ucm_regions(np.ones((5, 5)), 0.5)
    with pytest.raises(InputError, match="begin at 0"):
        ucm_regions(hierarchy(), -0.1)
    savemat(tmp_path / "1.mat", {"ucm2": np.zeros((4, 5))})
    with pytest.raises(InputError, match=r"1\.mat: ucm2 has the shape \(4, 5\)"):
        read_ucm2(tmp_path / "1.mat")


def test_broken_matlab_files_are_named(tmp_path):
    path = tmp_path / "2018.mat"
    with pytest.raises(InputError, match=r"there is no .*2018\.mat"):
        read_superpixels(path)
    path.write_bytes(b"no MATLAB file at all" * 20)
    with pytest.raises(InputError, match=r"2018\.mat cannot be read as a MATLAB file"):
        read_superpixels(path)
    savemat(path, {"labels": np.ones((3, 3))})
    with pytest.raises(InputError, match=r"2018\.mat has no variable 'seg_lab' but labels"):
        read_superpixels(path)
    savemat(path, {"seg_lab": np.full((3, 3), 0.5)})
    with pytest.raises(InputError, match=r"map .* of whole numbers"):
        read_superpixels(path)
    savemat(path, {"groundTruth": np.ones((3, 3))})
    with pytest.raises(InputError, match="no cell of structs with the field Segmentation"):
        read_ground_truth(path)
    savemat(path, {"groundTruth": np.empty((1, 0), dtype=object)})
    with pytest.raises(InputError, match="holds no human map"):
        read_ground_truth(path)
    savemat(path, {"seg_lab": np.array([[1.0, 2.0]])})  # MATLAB's numbers are doubles
    assert read_superpixels(path).tolist() == [[1, 2]]


# ---- what a run refuses before it starts ---------------------------------------------------------------


def test_missing_superpixel_files_are_named(bsds500):
    (bsds500 / "dic_superpixel" / "8068.mat").unlink()
    module = datamodule(bsds500, superpixels=superpixels(source="mat"))
    with pytest.raises(InputError, match=r"1 of 3 images have no superpixel file: .*dic_superpixel/8068\.mat"):
        module.setup("fit")


def test_missing_hierarchies_are_named(bsds500):
    with pytest.raises(InputError, match=r"source=ucm: 3 of 3 ucm2 files are missing: .*ucm2/test/2018\.mat"):
        datamodule(bsds500, superpixels=superpixels(source="ucm")).setup("fit")
    with pytest.raises(InputError, match="this layout has no ucm2 files"):
        module = datamodule(bsds500, reader=PhotographFolderReader(), superpixels=superpixels(source="ucm"))
        module.setup("fit")
    model = SimpleNamespace(settings=[[0.1]], reads_ucm2=True)
    with pytest.raises(InputError, match=r"reads boundary hierarchies: 3 of 3 ucm2 files are missing"):
        attached(datamodule(bsds500), model).setup("fit")


@pytest.mark.parametrize("source", ["mat", "auto"])
def test_superpixels_of_another_size_are_refused_with_both_sizes(bsds500, source):
    savemat(bsds500 / "dic_superpixel" / "8068.mat", {"seg_lab": np.arange(20 * 29).reshape(20, 29) // 9})
    module = datamodule(bsds500, superpixels=superpixels(source=source))
    with pytest.raises(InputError, match=r"8068\.mat is for an image of 20x29 .*20x30"):
        module.setup("fit")


def test_superpixels_that_are_no_guide_are_refused_before_the_run_starts(bsds500):
    savemat(bsds500 / "dic_superpixel" / "8068.mat", {"seg_lab": np.ones((HEIGHT, WIDTH))})
    with pytest.raises(InputError, match=r"8068\.jpg from source mat has 1 superpixels on 600 pixels"):
        datamodule(bsds500, superpixels=superpixels(source="auto")).setup("fit")


def test_a_plain_photograph_stops_nothing_and_is_named(bsds500):
    plain = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    Image.fromarray(plain).save(bsds500 / "BSDS500/data/images/test/8068.jpg")
    module = datamodule(bsds500)
    module.setup("fit")
    images = images_of(module)
    with pytest.warns(UserWarning, match="8068 has one superpixel") as caught:
        guides = [images[place]["guide"] for place in range(3)]
    assert len(caught) == 1 and [bool(guide.any()) for guide in guides] == [True, False, True]


def test_human_maps_of_another_size_are_refused_with_both_sizes(bsds500):
    write_truth(bsds500 / "BSDS500/data/groundTruth/test/8068.mat", [some_map(0), some_map(1, 21, 30)])
    with pytest.raises(InputError, match=r"8068\.jpg .*8068\.mat\) has 21x30 .*20x30"):
        datamodule(bsds500).setup("fit")


def test_hierarchies_of_another_size_are_refused_with_both_sizes(bsds500):
    folder = bsds500 / "BSDS500" / "ucm2" / "test"
    folder.mkdir(parents=True)
    for name in IDS:
        savemat(folder / f"{name}.mat", {"ucm2": hierarchy(20, 30 if name != "8068" else 32)})
    with pytest.raises(InputError, match=r"8068\.mat is for an image of 20x32 .*20x30"):
        datamodule(bsds500, superpixels=superpixels(source="ucm")).setup("fit")
    model = SimpleNamespace(settings=[[0.1]], reads_ucm2=True)
    with pytest.raises(InputError, match=r"8068\.mat has 41x65 values .*needs 41x61"):
        attached(datamodule(bsds500), model).setup("fit")


def test_grey_photographs_become_rgb_with_one_warning(bsds500):
    path = bsds500 / "BSDS500/data/images/test/8068.jpg"
    Image.fromarray(picture(5)[..., 0]).save(path)
    module = datamodule(bsds500)
    with pytest.warns(UserWarning, match="1 of 3 images are grey: 8068; .*RGB") as caught:
        module.setup("fit")
    assert len(caught) == 1
    image = images_of(module)[1]["image"]
    assert image.shape == (3, HEIGHT, WIDTH) and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_photographs_without_human_maps_are_read_and_it_is_said(bsds500):
    (bsds500 / "BSDS500/data/groundTruth/test/8068.mat").unlink()
    module = datamodule(bsds500)
    with pytest.warns(UserWarning, match="1 of 3 images have no human maps: 8068; .*not scored"):
        module.setup("fit")
    assert [len(sample["human"]) for sample in images_of(module)] == [2, 0, 2]


def test_a_folder_of_photographs_has_no_human_maps(tmp_path):
    for name in ("b.png", "inside/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photograph")
    module = datamodule(tmp_path, reader=PhotographFolderReader())
    with pytest.warns(UserWarning, match="2 of 2 images have no human maps"):
        module.setup("fit")
    assert [(s["name"], s["human"]) for s in images_of(module)] == [("b.png", []), ("inside/a.jpg", [])]


def test_prediction_reads_a_folder_and_not_the_data(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "mine.png")
    module = attached(datamodule(None, predict_root=tmp_path))
    module.prepare_data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.setup("predict")
    (sample,) = module.predict_dataloader()
    assert (sample["name"], sample["human"], sample["size"]) == ("mine.png", [], (HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"root": Path("nowhere")}, r"data\.root=nowhere is no folder: it must hold BSDS500"),
        ({"splits": ["tset"]}, r"there is no split .*tset: did you mean test\?"),
        ({"splits": ["test", "test"]}, "3 images are in more than one of data.splits: "),
        ({"images": [2018, 2019]}, r"data\.images: 1 of 2 are not in the data: 2019; did you mean 2018"),
        ({"images": [2018, 2018]}, "each once"),
        ({"images": []}, "one image or more"),
        ({"limit": 0}, r"data\.limit=0 leaves no image"),
        ({"scale": 0.2}, r"has 20x30 pixels .*data\.scale=0\.2 its shorter side is below 8"),
        ({"scale": 1.5}, r"data\.scale=1\.5 must be above 0 and at most 1"),
        ({"scale": 0.0}, r"data\.scale=0\.0 must be above 0"),
    ],
)
def test_wrong_values_are_answered_in_a_sentence(bsds500, change, sentence):
    with pytest.raises(InputError, match=sentence):
        datamodule(**{"root": bsds500, **change}).setup("fit")


def test_a_root_and_a_prediction_folder_must_be_named():
    with pytest.raises(InputError, match=r"data\.root is not set"):
        datamodule(None).setup("fit")
    with pytest.raises(InputError, match=r"data\.predict_root is not set"):
        datamodule(None).setup("predict")


def test_photographs_that_cannot_be_read_are_named(bsds500):
    (bsds500 / "BSDS500/data/images/test/8068.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 of 3 images of .* cannot be read: 8068"):
        datamodule(bsds500).setup("fit")


def test_an_empty_split_and_an_empty_folder_are_named(tmp_path):
    (tmp_path / "BSDS500/data/images/test").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no photograph"):
        datamodule(tmp_path).setup("fit")
    with pytest.raises(InputError, match="holds no photograph"):
        datamodule(tmp_path, reader=PhotographFolderReader()).setup("fit")
    assert chosen([], None, None) == []


# ---- the walk ------------------------------------------------------------------------------------------


def walked(module: BSDSDataModule, settings: int, **position) -> list[tuple[str, int, bool]]:
    model = SimpleNamespace(settings=[[s] for s in range(settings)])
    loader = attached(module, model, **position).train_dataloader()
    return [(batch["name"], batch["setting"], "spare" in batch) for batch in loader]


def test_an_epoch_walks_over_every_image_with_every_setting(bsds500):
    module = datamodule(bsds500)
    module.setup("fit")
    everything = [(name, setting, False) for name in ("2018", "8068", "12003") for setting in range(3)]
    assert walked(module, 3) == everything
    assert walked(module, 3, done=4) == everything[4:]  # resumed inside the epoch


@pytest.mark.parametrize("world_size", [2, 4, 11])
def test_processes_share_the_walk_in_equally_many_batches(bsds500, world_size):
    module = datamodule(bsds500)
    module.setup("fit")
    shares = [walked(module, 3, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    counted = [(name, setting) for share in shares for name, setting, spare in share if not spare]
    assert sorted(counted) == sorted((name, setting) for name, setting, _ in walked(module, 3))
    resumed = walked(module, 3, rank=1, world_size=world_size, done=1)
    assert resumed == shares[1][1:]


def test_the_length_of_a_resumed_walk_is_that_of_the_whole_epoch():
    sampler = WalkSampler(7, 2, lambda: EpochPosition(0, 3, 1, 2))
    assert len(sampler) == 4 and list(sampler) == [(6, True)]


def test_the_walk_takes_the_plain_places_of_torchs_own_samplers(bsds500):
    """trainer.overfit_batches sets one."""
    module = datamodule(bsds500)
    module.setup("fit")
    sample = ImagesWithSettings(images_of(module), 2)[3]
    assert (sample["name"], sample["setting"], "spare" in sample) == ("8068", 1, False)


def test_a_broken_hierarchy_is_named(bsds500):
    folder = bsds500 / "BSDS500" / "ucm2" / "test"
    folder.mkdir(parents=True)
    for name in IDS:
        savemat(folder / f"{name}.mat", {"ucm2": np.ones((2 * HEIGHT + 1, 2 * WIDTH + 1))})
    with pytest.raises(InputError, match=r"ucm2/test/2018\.mat: 600 pixels .* lie on boundaries"):
        datamodule(bsds500, superpixels=superpixels(source="ucm"), images=[2018]).setup("fit")


def test_an_image_is_read_once_for_all_its_settings(bsds500):
    module = datamodule(bsds500)
    module.setup("fit")
    images = images_of(module)
    reads, read = [], images._read
    images._read = lambda index: reads.append(index) or read(index)
    samples = [ImagesWithSettings(images, 4)[place, False] for place in range(12)]
    assert reads == [0, 1, 2]
    assert [sample["setting"] for sample in samples] == [0, 1, 2, 3] * 3


def test_a_process_without_an_image_to_judge_gets_a_spare_one(bsds500):
    module = datamodule(bsds500)
    module.setup("fit")
    shares = [list(attached(module, rank=rank, world_size=4).test_dataloader()) for rank in range(4)]
    assert [[("spare" in batch, batch["name"]) for batch in share] for share in shares] == [
        [(False, "2018")],
        [(False, "8068")],
        [(False, "12003")],
        [(True, "2018")],
    ]


def test_hierarchies_are_read_for_a_module_that_asks(bsds500):
    folder = bsds500 / "BSDS500" / "ucm2" / "test"
    folder.mkdir(parents=True)
    for name in IDS:
        savemat(folder / f"{name}.mat", {"ucm2": hierarchy(HEIGHT, WIDTH)})
    module = attached(datamodule(bsds500), SimpleNamespace(settings=[[0.1]], reads_ucm2=True))
    module.setup("fit")
    sample = images_of(module)[0]
    assert sample["ucm2"].dtype == torch.float64 and sample["ucm2"].tolist() == hierarchy(HEIGHT, WIDTH).tolist()


# ---- the generated picture -------------------------------------------------------------------------------


def textures(**changes) -> VoronoiTextures:
    settings = {
        "seed": 0,
        "images": 2,
        "height": 64,
        "width": 96,
        "periods": (4.0, 7.0),
        "flat": 2,
        "gradients": 1,
        "noise": 10.0,
        "least_share": 0.1,
    }
    return VoronoiTextures(**{**settings, **changes})


def test_generated_cells_are_flat_striped_or_shaded():
    for number in range(5):
        image, labels = textures(noise=0.0).picture(number)
        assert image.shape == (64, 96, 3) and sorted(np.unique(labels)) == [1, 2, 3, 4, 5]
        assert np.bincount(labels.ravel())[1:].min() >= 0.1 * labels.size
        spread = [float(image[labels == cell].std(axis=0).mean()) for cell in range(1, 6)]
        assert max(spread[:2]) == 0
        assert spread[2:4] == pytest.approx([40 / math.sqrt(2)] * 2, rel=0.15)  # of a sine of 40
        grey = image.mean(axis=-1)
        y, x = np.nonzero(labels == 5)
        plane = np.column_stack([y, x, np.ones(len(y))])
        left_over = grey[y, x] - plane @ np.linalg.lstsq(plane, grey[y, x], rcond=None)[0]
        assert np.ptp(grey[y, x]) == pytest.approx(60, abs=2) and np.abs(left_over).max() < 1


def test_stripes_have_the_periods_that_are_asked_for():
    """The strongest frequency of a cell is 1 / period, in whatever direction."""
    for number in range(3):
        image, labels = textures(noise=0.0, height=128, width=192).picture(number)
        for cell, period in ((3, 4.0), (4, 7.0)):
            inside = labels == cell
            grey = np.where(inside, image.mean(axis=-1) - image[inside].mean(), 0)
            power = np.abs(np.fft.fft2(grey))
            y, x = np.unravel_index(power.argmax(), power.shape)
            frequency = np.hypot(np.fft.fftfreq(128)[y], np.fft.fftfreq(192)[x])
            assert 1 / frequency == pytest.approx(period, rel=0.06)


def test_noise_has_its_standard_deviation():
    quiet, _ = textures(noise=0.0).picture(0)
    noisy, _ = textures().picture(0)
    assert (noisy.astype(float) - quiet).std() == pytest.approx(10, rel=0.05)


def reader(**changes) -> VoronoiTexturesReader:
    settings = vars(textures(**changes)).copy()
    return VoronoiTexturesReader(**{**settings, "periods": list(settings["periods"])})


def test_the_generated_pictures_are_files_in_the_official_layout(tmp_path):
    module = attached(datamodule(tmp_path / "made", reader=reader()))
    module.prepare_data()
    module.setup("fit")
    samples = list(module.test_dataloader())
    assert [sample["name"] for sample in samples] == ["1", "2"]
    for number, sample in enumerate(samples):
        image, labels = textures().picture(number)
        assert sample["human"][0].tolist() == labels.tolist() and len(sample["human"]) == 1
        # JPEG's own error stays below the noise, and parts no cell.
        difference = sample["image"].permute(1, 2, 0).numpy().astype(float) - image
        assert np.sqrt((difference**2).mean()) < 5
        assert 30 < int(sample["guide"].max()) + 1 < 300
        assert region_scores(sample["guide"], sample["human"]).gce < 0.05
    truth = loadmat(tmp_path / "made/BSDS500/data/groundTruth/test/1.mat")["groundTruth"]
    assert truth.shape == (1, 1) and truth[0, 0].dtype.names == ("Segmentation", "Boundaries")


def test_equal_values_give_equal_files_and_others_replace_them(tmp_path):
    root = tmp_path / "made"
    picture_file = root / "BSDS500/data/images/test/1.jpg"
    reader().prepare(root)
    first = picture_file.read_bytes()
    reader().prepare(root)
    assert picture_file.read_bytes() == first
    reader(seed=1).prepare(root)
    assert picture_file.read_bytes() != first


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"images": 0}, "at least 1 image"),
        ({"flat": 1, "periods": (), "gradients": 0}, "2 cells are needed"),
        ({"least_share": 0.3}, "lower it"),
        ({"flat": 60, "least_share": 0.0}, "use fewer cells"),
    ],
)
def test_pictures_that_cannot_be_made_are_refused(tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        reader(**change).prepare(tmp_path / "made")
    assert not (tmp_path / "made").exists()
