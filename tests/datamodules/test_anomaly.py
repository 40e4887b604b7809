"""The anomaly datamodule: what a batch holds, and the sentences for what is wrong with files or settings."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.anomaly import AnomalyDataModule, flipped
from datamodules.anomaly_files import FolderReader, KSDD2Reader, MVTecADReader
from datamodules.anomaly_sampling import View
from runs.errors import InputError
from tests.datamodules.anomaly_layouts import (
    SIZE,
    generated_sources,
    lay_folder,
    lay_ksdd2,
    lay_mvtec,
    lay_sensum,
)


@pytest.fixture
def root(tmp_path):
    return lay_ksdd2(generated_sources(tmp_path / "sources"), tmp_path / "root")


def datamodule(root, **changes) -> AnomalyDataModule:
    settings = {
        "reader": KSDD2Reader(None, 0.0, 0),
        "root": str(root),
        "category": None,
        "fold": None,
        "regime": "supervised",
        "size": list(SIZE),
        "flips": True,
        "per_batch": False,
        "cache_features": False,
        "on_error": "raise",
        "batch_size": 4,
        "eval_batch_size": 2,
        "predict_root": None,
        "num_workers": 0,
        "pin_memory": False,
        "seed": 0,
    }
    return AnomalyDataModule(**{**settings, **changes})


def ready(root, **changes) -> AnomalyDataModule:
    data = datamodule(root, **changes)
    data.setup("fit")
    fit_loop = SimpleNamespace(
        epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0, ready=0)),
        epoch_loop=SimpleNamespace(
            batch_progress=SimpleNamespace(is_last_batch=False, current=SimpleNamespace(processed=0))
        ),
    )
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, fit_loop=fit_loop, predicting=False)
    return data


def test_a_batch_holds_the_words_of_the_vocabulary(root):
    batch = next(iter(ready(root).train_dataloader()))
    assert set(batch) == {"image", "mask", "label", "index", "name"}
    assert batch["image"].shape == (4, 3, *SIZE) and batch["image"].dtype == torch.uint8
    assert batch["mask"].shape == (4, *SIZE) and set(batch["mask"].unique().tolist()) <= {0, 1}
    assert torch.equal(batch["mask"].flatten(1).amax(dim=1), batch["label"])


def test_unsupervised_training_leaves_defects_out_and_supervised_balances(root):
    batches = list(ready(root, regime="unsupervised").train_dataloader())
    assert sum(len(batch["label"]) for batch in batches) == 3 and not any(b["label"].any() for b in batches)
    labels = torch.cat([batch["label"] for batch in ready(root).train_dataloader()])
    assert len(labels) == 16 and int(labels.sum()) == 8


def test_flips_move_image_and_mask_together_in_all_four_ways(root):
    images = ready(root)._train
    index = next(i for i, image in enumerate(images.images) if image.defective)
    plain = images[View(index, 0)]
    for flip, axes in ((1, [1]), (2, [2]), (3, [1, 2])):
        turned = images[View(index, flip)]
        assert torch.equal(turned["image"], plain["image"].flip(axes))
        assert torch.equal(turned["mask"], plain["mask"].flip([axis - 1 for axis in axes]))
        assert not torch.equal(turned["mask"], plain["mask"])
    rotated = flipped(plain["image"], 3)
    assert torch.equal(rotated, torch.rot90(plain["image"], 2, [1, 2]))


def test_height_comes_first(tmp_path):
    """The trap of KSDD2 and SensumSODF: sizes are printed as width x height there."""
    folder = tmp_path / "root" / "train"
    folder.mkdir(parents=True)
    tall = np.zeros((630, 230), dtype=np.uint8)
    tall[:100] = 255
    for part in ("train", "test"):
        (tmp_path / "root" / part).mkdir(exist_ok=True)
        Image.fromarray(tall).save(tmp_path / "root" / part / "10.png")
        Image.fromarray(np.zeros_like(tall)).save(tmp_path / "root" / part / "10_GT.png")
    data = ready(tmp_path / "root", regime="unsupervised", size=[640, 232])
    image = data._train[0]["image"]
    assert image.shape == (3, 640, 232)
    assert (image[:, :95] == 255).all() and (image[:, 110:] == 0).all()  # not squeezed, not turned


def test_configured_sizes_are_height_times_width():
    from runs.composition import compose_config

    for name, size in (("ksdd2", [640, 232]), ("sensum", {"capsule": [320, 192], "softgel": [144, 144]})):
        config = compose_config([f"experiment=supersimplenet_{name}", "data.root=x", "paths.run_dir=x"])
        assert config.data.size == size


def test_a_category_has_its_own_size(tmp_path):
    root = lay_sensum(generated_sources(tmp_path / "sources"), tmp_path / "root")
    from datamodules.anomaly_files import SensumReader

    sizes = {"capsule": [320, 192], "softgel": [144, 144]}
    for category, size in sizes.items():
        data = ready(root, reader=SensumReader(0.0, 0), category=category, fold=0, size=sizes)
        assert data._train[0]["image"].shape == (3, *size)
    with pytest.raises(InputError, match=r"data\.category=pill is none of capsule, softgel"):
        datamodule(root, category="pill", size=sizes)


def test_a_defect_without_a_mask_is_unknown_everywhere_and_a_normal_image_is_clean(tmp_path):
    root = lay_folder(generated_sources(tmp_path / "sources"), tmp_path / "root", masks=False)
    reader = FolderReader("normal", "abnormal", None, 0, 0.34, 0.0, 0)
    with pytest.warns(UserWarning, match="4 defective test images have no mask, so their pixels are not scored"):
        data = ready(root, reader=reader, regime="unsupervised")
    masks = {sample["label"]: sample["mask"].unique().tolist() for sample in data._test}
    assert masks == {0: [0], 1: [255]}


def test_cached_features_stand_for_the_image(root):
    data = ready(root, regime="unsupervised", cache_features=True)
    features = np.arange(12, dtype=np.float32).reshape(3, 1, 2, 2)
    data.use_rounds("frozen_features", SimpleNamespace(generation={"feature_map": features}))
    sample = data._train[View(1, 0)]
    assert "image" not in sample and sample["feature_map"].tolist() == [[[4, 5], [6, 7]]]
    assert "image" in data.training_images()[1]


def test_pictures_to_predict_keep_their_own_size(root, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(np.zeros((70, 90, 3), dtype=np.uint8)).save(pictures / "a.png")
    data = datamodule(tmp_path / "gone", predict_root=str(pictures))  # the training data need not be there
    data.setup("predict")
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    batch = next(iter(data.predict_dataloader()))
    assert batch["image"].shape == (1, 3, *SIZE) and batch["whole"].shape == (1, 3, 70, 90)


# ---- sentences -----------------------------------------------------------------------------------------


def test_a_missing_root_says_what_belongs_there(tmp_path):
    with pytest.raises(InputError, match=r"data\.root=.*gone is no folder: it must hold train/<id>\.png"):
        datamodule(tmp_path / "gone").setup("fit")


def test_supervised_training_names_images_without_a_mask(tmp_path):
    root = lay_folder(generated_sources(tmp_path / "sources"), tmp_path / "root")
    for path in sorted((root / "masks").iterdir())[:2]:
        path.unlink()
    data = datamodule(root, reader=FolderReader("normal", "abnormal", "masks", 0, 0.0, 0.0, 0))
    with pytest.raises(InputError, match=r"2 of 4 defective training images have no mask.*abnormal/006\.png"):
        data.setup("fit")


def test_a_mask_of_another_size_is_named(root):
    path = root / "train" / "10006_GT.png"
    with Image.open(path) as mask:
        mask.resize((30, 30)).save(path)
    path = next(p for p in sorted((root / "train").glob("*_GT.png")) if p.name > "10005")
    with pytest.raises(InputError, match=r"1 masks of training images have another size.*30 x 30 instead of 40 x 48"):
        datamodule(root).setup("fit")


def test_an_unreadable_image_stops_the_run_or_is_left_out(root):
    (root / "train" / "10001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 of 5 training images cannot be read: .*10001\.png.*data\.on_error=skip"):
        datamodule(root).setup("fit")
    data = datamodule(root, on_error="skip")
    with pytest.warns(UserWarning, match=r"1 unreadable training images are left out: train/10001\.png"):
        data.setup("fit")
    assert len(data._train) == 4


def test_a_defective_image_does_not_slip_into_unsupervised_training(tmp_path):
    root = lay_mvtec(generated_sources(tmp_path / "sources"), tmp_path / "root")
    (root / "tile" / "train" / "hole").mkdir()
    (root / "tile" / "test" / "hole" / "000.png").rename(root / "tile" / "train" / "hole" / "000.png")
    data = datamodule(root, reader=MVTecADReader(), category="tile", regime="unsupervised")
    with pytest.raises(InputError, match=r"1 training images below .* are defective.*tile/train/hole/000\.png"):
        data.setup("fit")


def test_supervised_training_needs_defects(tmp_path):
    root = lay_mvtec(generated_sources(tmp_path / "sources"), tmp_path / "root")
    with pytest.raises(InputError, match=r"needs defective training images.*set model\.regime=unsupervised"):
        datamodule(root, reader=MVTecADReader(), category="tile").setup("fit")


def test_images_and_sizes_below_32_pixels_are_refused(root):
    with pytest.raises(InputError, match=r"data\.size=\[16, 64\] must be \[height, width\], each 32 pixels"):
        datamodule(root, size=[16, 64])
    Image.fromarray(np.zeros((20, 40), dtype=np.uint8)).save(root / "test" / "10003.png")
    with pytest.raises(InputError, match=r"1 test images are smaller than 32 x 32 pixels: test/10003\.png \(40 x 20\)"):
        datamodule(root).setup("fit")


def test_alpha_channels_and_16_bits_are_converted_and_said(root):
    path = root / "train" / "10000.png"
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"))
    Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 9)])).save(path)
    deep = root / "train" / "10001.png"
    with Image.open(deep) as picture:
        original = np.asarray(picture.convert("L"))
    Image.fromarray(original.astype(np.uint16) * 256).save(deep)
    with pytest.warns(UserWarning) as said:
        data = datamodule(root)
        data.setup("fit")
    sentences = [str(warning.message) for warning in said]
    assert any("1 training images have an alpha channel, which is left out: train/10000.png" in s for s in sentences)
    assert any("1 training images have 16 bits, of which the upper 8 are used: train/10001.png" in s for s in sentences)
    images = {sample["name"]: sample["image"] for sample in data.training_images()}
    assert np.array_equal(images["train/10000.png"][0].numpy(), grey)
    assert np.array_equal(images["train/10001.png"][2].numpy(), original)


def test_an_image_in_two_lists_is_refused(root):
    class Leaky(KSDD2Reader):
        def read(self, *words):
            splits = super().read(*words)
            return type(splits)(splits.train, [*splits.test, splits.train[0]])

    with pytest.raises(InputError, match="1 images or groups are in both the training and the test list"):
        datamodule(root, reader=Leaky(None, 0.0, 0)).setup("fit")


def test_a_partly_annotated_list_is_refused_in_words(root):
    ids = sorted(int(p.stem) for p in (root / "train").glob("*.png") if p.stem.isdigit())
    (root / "split_1.pyb").write_bytes(pickle.dumps([[(number, False) for number in ids], []]))
    with pytest.raises(InputError, match="2 of 2 defective training images have no mask"):
        datamodule(root, reader=KSDD2Reader("split_1.pyb", 0.0, 0)).setup("fit")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cache_features": True}, r"data\.cache_features=true .* set data\.flips=false"),
        ({"per_batch": True, "batch_size": 3}, r"data\.batch_size=3 must be even"),
        ({"num_workers": -1}, r"data\.num_workers=-1 must be 0 or more"),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_answered(root, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        datamodule(root, **changes)
