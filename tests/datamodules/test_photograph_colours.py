"""Photographs to learn colours from: layouts, what is held out, bad files, sizes."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning.trainer.states import TrainerFn

from datamodules.photograph_colours import (
    COCO2014Reader,
    FolderReader,
    PhotographColoursDataModule,
    VOCPhotographsReader,
)
from datamodules.sampling import Draw
from runs.errors import InputError


def save(path: Path, number: int = 0, size: tuple[int, int] = (48, 40), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def coco(root: Path, train: int = 6, test: int = 8) -> Path:
    for folder, count in (("train2014", train), ("test2014", test)):
        for number in range(count):
            save(root / folder / f"COCO_{folder}_{number:012d}.jpg", number)
    return root


def datamodule(root: Path, reader: object = None, **settings: object) -> PhotographColoursDataModule:
    values = {
        "side": 64, "resize": "bilinear", "flip": 0.0, "min_side": 32, "skip_bad": False, "batch_size": 2,
        "eval_batch_size": 1, "split_file": str(root / "split.json"), "predict_root": None, "num_workers": 0,
        "pin_memory": False, "seed": 0, **settings,
    }  # fmt: skip
    return PhotographColoursDataModule(reader or COCO2014Reader(2, 3, 0), str(root), **values)


def set_up(root: Path, reader: object = None, **settings: object) -> PhotographColoursDataModule:
    module = datamodule(root, reader, **settings)
    module.setup("fit")
    return module


def test_coco_trains_on_all_of_train2014_and_draws_what_it_is_judged_by(tmp_path):
    parts = set_up(coco(tmp_path)).parts
    assert parts.train == [f"train2014/COCO_train2014_{n:012d}.jpg" for n in range(6)]
    assert (len(parts.val), len(parts.test)) == (2, 3)
    assert not set(parts.val) & set(parts.test)
    assert all(name.startswith("test2014/") for name in (*parts.val, *parts.test))
    again, other = (COCO2014Reader(2, 3, seed).read(tmp_path) for seed in (0, 1))
    assert (again.test, again.val) == (parts.test, parts.val)
    assert other.test != parts.test


def test_more_held_out_than_there_are_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"test2014 holds 8 pictures, of which .*val_count=2 and .*test_count=7"):
        set_up(coco(tmp_path), COCO2014Reader(2, 7, 0))


def test_any_folder_is_split_into_three_parts(tmp_path):
    for number in range(9):
        save(tmp_path / ("deep/er" if number % 2 else ".") / f"{number}.{'png' if number % 3 else 'JPG'}", number)
    parts = set_up(tmp_path, FolderReader(2, 3, 0)).parts
    assert sorted([*parts.train, *parts.val, *parts.test]) == sorted({*parts.train, *parts.val, *parts.test})
    assert (len(parts.train), len(parts.val), len(parts.test)) == (4, 2, 3)


def voc(root: Path) -> Path:
    folder = root / "VOCdevkit" / "VOC2012"
    for number in range(8):
        save(folder / "JPEGImages" / f"{number}.jpg", number)
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n2\n")
    (lists / "val.txt").write_text("3\n4\n")
    return root


def test_what_later_stages_are_judged_by_is_never_trained_on(tmp_path):
    """Trap 9: unlabelled photographs (5, 6, 7 are in no list) are used, those of the held-out list are not."""
    parts = set_up(voc(tmp_path), VOCPhotographsReader(["val"])).parts
    assert [Path(name).stem for name in parts.train] == ["0", "1", "2", "5", "6", "7"]
    assert [Path(name).stem for name in parts.test] == ["3", "4"] == [Path(name).stem for name in parts.val]


def test_a_folder_that_holds_voc_too_leaves_its_photographs_to_the_later_stages(tmp_path):
    """Trap 9: data.root is one folder for all stages."""
    for number in range(9):
        save(tmp_path / "mine" / f"{number}.jpg", number)
    voc(tmp_path)
    with pytest.warns(UserWarning, match=r"8 of 17 photographs below .* lie in a VOCdevkit folder and are left out"):
        parts = set_up(tmp_path, FolderReader(2, 3, 0)).parts
    assert {Path(name).parts[0] for name in (*parts.train, *parts.val, *parts.test)} == {"mine"}
    assert (len(parts.train), len(parts.val), len(parts.test)) == (4, 2, 3)


def test_photographs_that_a_list_cannot_tell_apart_are_named(tmp_path):
    root = voc(tmp_path)
    save(root / "VOCdevkit/VOC2012/JPEGImages/3.png")
    with pytest.raises(
        InputError, match=r"2 photographs .* share their names .*JPEGImages/3\.jpg, .*JPEGImages/3\.png"
    ):
        set_up(root, VOCPhotographsReader(["val"]))


def test_coco128_trains_on_the_65_and_the_31_that_have_no_label(sample_data, tmp_path):
    root = sample_data / "coco128_voc"
    reader = VOCPhotographsReader(["val"])
    with pytest.warns(UserWarning, match="1 of 128 photographs .* are grey and become RGB"):
        parts = set_up(root, reader, split_file=str(tmp_path / "split.json")).parts
    lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    train, val = ((lists / f"{name}.txt").read_text().split() for name in ("train", "val"))
    trained = {Path(name).stem for name in parts.train}
    assert len(trained) == 96 and set(train) < trained and not trained & set(val)
    assert {Path(name).stem for name in parts.test} == set(val)


def test_an_unknown_list_or_a_photograph_that_is_not_there_is_named(tmp_path):
    root = voc(tmp_path)
    with pytest.raises(InputError, match=r"there is no list .*vall.txt: did you mean val"):
        set_up(root, VOCPhotographsReader(["vall"]))
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("3\nnine\n")
    with pytest.raises(InputError, match=r"1 of 2 photographs of the lists val are missing .*JPEGImages: nine"):
        set_up(root, VOCPhotographsReader(["val"]))


def test_another_layout_is_answered_with_what_the_folder_must_look_like(tmp_path):
    with pytest.raises(InputError, match="gone is no folder: it must hold train2014"):
        set_up(tmp_path / "gone")
    (tmp_path / "train2014").mkdir()
    with pytest.raises(InputError, match=r"there is no folder .*test2014: it must hold train2014/\*.jpg and test2014"):
        set_up(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*JPEGImages: it must hold VOCdevkit/VOC2012"):
        set_up(tmp_path, VOCPhotographsReader(["val"]))


def test_an_unreadable_photograph_is_named_unless_it_may_be_left_out(tmp_path):
    root = coco(tmp_path)
    whole = (root / "train2014/COCO_train2014_000000000003.jpg").read_bytes()
    (root / "train2014/COCO_train2014_000000000003.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train2014/COCO_train2014_000000000001.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"2 of 11 photographs .* cannot be read: .*0001.jpg, .*0003.jpg"):
        set_up(root)
    with pytest.warns(UserWarning, match="2 of 11 photographs .* they are left out"):
        assert len(set_up(root, skip_bad=True).parts.train) == 4


def test_tiny_photographs_are_left_out_with_a_message(tmp_path):
    root = coco(tmp_path)
    save(root / "train2014/COCO_train2014_000000000000.jpg", size=(31, 64))
    save(root / "train2014/COCO_train2014_000000000001.jpg", size=(32, 32))
    with pytest.warns(UserWarning, match=r"1 photographs .* smaller than 32 pixels and left out: .*000000000000.jpg"):
        assert len(set_up(root).parts.train) == 5


def test_grey_and_cmyk_files_become_rgb_with_a_count(tmp_path):
    root = coco(tmp_path)
    save(root / "train2014/COCO_train2014_000000000000.jpg", mode="L")
    save(root / "train2014/COCO_train2014_000000000001.jpg", mode="CMYK")
    save(root / "train2014/COCO_train2014_000000000002.jpg", mode="CMYK")
    with pytest.warns(UserWarning) as said:
        module = set_up(root)
    sentences = " ".join(str(warning.message) for warning in said)
    assert re.search("1 of 11 photographs .* are grey", sentences)
    assert re.search("2 of 11 photographs .* are CMYK", sentences)
    photographs = module._photographs(module.parts.train, 0.0)
    grey = photographs[0]["image"]
    assert grey.shape == (3, 64, 64) and torch.equal(grey[0], grey[2])
    assert photographs[1]["image"].shape == (3, 64, 64)


@pytest.mark.parametrize("resize", ["bilinear", "nearest"])
def test_photographs_are_resized_without_keeping_their_aspect(tmp_path, resize):
    module = set_up(coco(tmp_path), resize=resize)
    sample = module._photographs(module.parts.train, 0.0)[2]
    with Image.open(tmp_path / module.parts.train[2]) as picture:
        way = Image.Resampling.BILINEAR if resize == "bilinear" else Image.Resampling.NEAREST
        expected = np.asarray(picture.resize((64, 64), way))
        colours = {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}
    assert np.array_equal(sample["image"].numpy().transpose(1, 2, 0), expected)
    assert sample["image"].dtype == torch.uint8 and sample["index"] == 2
    new = {tuple(colour) for colour in expected.reshape(-1, 3).tolist()} - colours
    assert bool(new) == (resize == "bilinear")  # nearest neighbour invents no colour


def test_mirroring_is_a_function_of_the_draw(tmp_path):
    module = set_up(coco(tmp_path), flip=0.5)
    photographs = module._photographs(module.parts.train, 0.5)
    plain = module._photographs(module.parts.train, 0.0)[1]["image"]
    mirrored = [not torch.equal(photographs[Draw(1, number)]["image"], plain) for number in range(40)]
    assert 10 < sum(mirrored) < 30
    assert torch.equal(photographs[Draw(1, mirrored.index(True))]["image"], plain.flip(-1))
    assert mirrored == [not torch.equal(photographs[Draw(1, n)]["image"], plain) for n in range(40)]


def test_what_is_held_out_is_a_part_of_the_state(tmp_path):
    module = set_up(coco(tmp_path))
    assert module.state_dict() == {"val": module.parts.val, "test": module.parts.test}
    assert json.loads(json.dumps(module.state_dict())) == module.state_dict()


def trainer(doing: TrainerFn) -> SimpleNamespace:
    """What the datamodule asks of a trainer of one process."""
    return SimpleNamespace(
        state=SimpleNamespace(fn=doing), world_size=1, global_rank=0, is_global_zero=True, predicting=False
    )


def judged(root: Path, state: dict[str, list[str]], reader: object) -> PhotographColoursDataModule:
    """A datamodule that takes up a checkpoint's state outside a fit."""
    module = set_up(root, reader)
    module.trainer = trainer(TrainerFn.TESTING)
    module.load_state_dict(state)
    return module


def folder_of(root: Path, count: int = 30) -> Path:
    for number in range(count):
        save(root / f"{number:02d}.jpg", number)
    return root


@pytest.mark.parametrize(("added", "split_seed"), [(1, 0), (0, 1)])
def test_a_checkpoint_is_judged_by_what_its_run_held_out_whatever_is_drawn_now(tmp_path, added, split_seed):
    """A draw from one file more, or by another seed, would judge by photographs that were trained on."""
    trained = set_up(folder_of(tmp_path), FolderReader(4, 6, 0))
    for number in range(added):
        save(tmp_path / f"0{number}_new.jpg", 99)
    drawn = set_up(tmp_path, FolderReader(4, 6, split_seed)).parts
    assert set(drawn.test) & set(trained.parts.train)
    again = judged(tmp_path, trained.state_dict(), FolderReader(4, 6, split_seed))
    assert again.state_dict() == trained.state_dict()
    assert list(again.test_dataloader().dataset.names) == trained.parts.test


def test_photographs_that_are_gone_do_not_judge_and_other_data_are_judged_by_their_own(tmp_path):
    trained = set_up(folder_of(tmp_path / "a"), FolderReader(4, 6, 0))
    gone, *left = trained.parts.test
    (tmp_path / "a" / gone).unlink()
    with pytest.warns(UserWarning, match=rf"1 of 6 photographs that the run holds out are not below .*: {gone}"):
        assert judged(tmp_path / "a", trained.state_dict(), FolderReader(4, 6, 0)).parts.test == left
    for number in range(12):
        save(tmp_path / "b" / f"other_{number}.jpg", number)
    elsewhere = judged(tmp_path / "b", trained.state_dict(), FolderReader(4, 6, 0))
    assert len(elsewhere.parts.test) == 6 and all(name.startswith("other_") for name in elsewhere.parts.test)


def test_the_photographs_that_judge_are_those_of_the_test_part_never_mirrored_in_their_own_batches(tmp_path):
    module = set_up(coco(tmp_path), flip=1.0, eval_batch_size=2)
    module.trainer = trainer(TrainerFn.TESTING)
    for part, loader in (("val", module.val_dataloader()), ("test", module.test_dataloader())):
        names = getattr(module.parts, part)
        batches = list(loader)
        assert [name for batch in batches for name in batch["name"]] == names
        assert [len(batch["image"]) for batch in batches] == {"val": [2], "test": [2, 1]}[part]
        with Image.open(tmp_path / names[0]) as picture:
            expected = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
        assert np.array_equal(batches[0]["image"][0].numpy().transpose(1, 2, 0), expected)


def test_an_empty_batch_is_refused_in_its_own_words(tmp_path):
    module = set_up(coco(tmp_path), batch_size=0)
    module.trainer = trainer(TrainerFn.FITTING)
    with pytest.raises(InputError, match=r"^the data's batch_size=0 must be 1 or more$"):
        module.train_dataloader()


def test_pictures_to_colour_come_with_their_own_size(tmp_path):
    save(tmp_path / "b.png", size=(50, 33), mode="L")
    save(tmp_path / "deep" / "a.jpg", size=(20, 70))
    module = datamodule(tmp_path / "gone", predict_root=str(tmp_path))
    with pytest.warns(UserWarning, match="1 of 2 photographs .* are grey"):
        module.setup("predict")
    first, second = (module._to_predict[index] for index in range(2))
    assert (first["name"], second["name"]) == ("b.png", "deep/a.jpg")
    assert first["image"].shape == second["image"].shape == (3, 64, 64)
    assert first["whole"].shape == (3, 33, 50) and second["whole"].shape == (3, 70, 20)
    with pytest.raises(InputError, match=r"data\.predict_root is not set"):
        datamodule(tmp_path).setup("predict")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no picture"):
        datamodule(tmp_path, predict_root=str(tmp_path / "empty")).setup("predict")
    (tmp_path / "c.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"1 of 3 photographs .* cannot be read: c\.jpg"):
        datamodule(tmp_path, predict_root=str(tmp_path)).setup("predict")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"flip": 2.0}, "data.flip=2.0 must be a probability"),
        ({"side": 0}, "data.side=0 .* must be 1 or more"),
        ({"batch_size": 7}, "the data's batch_size=7 is more than the 6 photographs to train on"),
    ],
)
def test_numbers_that_make_no_sense_are_answered_in_words(tmp_path, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        set_up(coco(tmp_path), **settings)
