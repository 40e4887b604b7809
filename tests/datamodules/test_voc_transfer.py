"""The data of the two downstream tasks: labels, masks, splits, and what a user can get wrong."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from components.voc import CLASS_NAMES, palette_image
from datamodules.photograph_checks import usable_photographs
from datamodules.sampling import Draw
from datamodules.voc_transfer import AnnotatedVOCReader, View, VOCTransferDataModule
from runs.errors import InputError

CLASSES = ["bird", "cat", "dog"]
FIRST = "2007_000000"


def write_voc(root: Path, images: int = 40, side: int = 40) -> Path:
    """Photographs of noise in VOC's layout with objects, masks and lists; returns its VOC2012 folder."""
    folder = root / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    names = [f"2007_{number:06d}" for number in range(images)]
    for name in names:
        shown = [label for label, share in zip(CLASSES, (0.6, 0.3, 0.15), strict=True) if generator.random() < share]
        shown = shown or ["bird"]
        pixels = generator.integers(0, 256, (side, side + 10, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        write_xml(folder, name, shown)
        mask = np.zeros((side, side + 10), np.uint8)
        mask[0] = 255
        for label in shown:
            value = CLASSES.index(label) + 1
            mask[10 * value : 10 * value + 8] = value
        palette_image(mask).save(folder / "SegmentationClass" / f"{name}.png")
    for list_name, members in (("trainval", names), ("train", names[:24]), ("val", names[24:32]), ("test", names[32:])):
        (folder / "ImageSets" / "Segmentation" / f"{list_name}.txt").write_text("\n".join(members) + "\n")
    return folder


def write_xml(folder: Path, name: str, shown: list[str]) -> None:
    objects = "".join(
        f"<object><name>{label}</name><difficult>{place % 2}</difficult></object>" for place, label in enumerate(shown)
    )
    (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")


def datamodule(root: Path, **changes) -> VOCTransferDataModule:
    settings = {
        "reader": AnnotatedVOCReader("SegmentationClass"),
        "root": str(root),
        "class_names": CLASSES,
        "num_classes": 3,
        "task": "classification",
        "split": "own",
        "pool_list": "annotated",
        "shares": [0.7, 0.2, 0.1],
        "split_seed": 0,
        "train_list": "train",
        "val_list": "val",
        "test_list": "test",
        "label_fraction": 1.0,
        "void_as_background": False,
        "side": 32,
        "crop": "resize",
        "interpolation": "bilinear",
        "batch_size": 8,
        "eval_batch_size": 4,
        "epochs_before": 0,
        "skip_bad": False,
        "folder": str(root / "run"),
        "predict_root": None,
        "num_workers": 0,
        "pin_memory": False,
        "seed": 3,
    }
    return VOCTransferDataModule(**{**settings, **changes})


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path)


def set_up(voc: Path, **changes) -> VOCTransferDataModule:
    data = datamodule(voc.parent.parent, **changes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup("fit")
    return data


def ids(data: VOCTransferDataModule) -> dict[str, list[str]]:
    return data.state_dict()["split"]


class Judging:
    """What the datamodule asks of a trainer outside a fit."""

    world_size, global_rank, is_global_zero, predicting = 1, 0, True, False
    state = SimpleNamespace(fn="test")


# ---- labels and masks ------------------------------------------------------------------------------


def test_a_label_is_the_set_of_objects_difficult_ones_included(voc):
    write_xml(voc, FIRST, ["dog", "cat", "dog"])  # the cat is marked difficult
    data = set_up(voc)
    part, place = next((part, ids(data)[part].index(FIRST)) for part in ids(data) if FIRST in ids(data)[part])
    sample = data._part(part, None)[place]
    assert sample["name"] == FIRST and sample["label"].tolist() == [0, 1, 1]
    assert sample["image"].shape == (3, 32, 32) and sample["image"].dtype == torch.uint8


def test_classes_are_numbered_alphabetically_as_keras_does():
    """Trap 8: the order of VOC's names is that of the alphabet."""
    from runs.composition import compose_config

    config = compose_config(["experiment=gan_colorization_voc", "paths.run_dir=unused", "data.root=x"])
    assert list(config.data.class_names) == CLASS_NAMES == sorted(CLASS_NAMES)


def test_every_image_with_an_xml_file_is_in_the_pool_listed_or_not(voc):
    (voc / "ImageSets" / "Segmentation" / "trainval.txt").write_text(f"{FIRST}\n")
    assert sum(len(names) for names in ids(set_up(voc)).values()) == 40


def test_an_xml_file_without_objects_is_a_label_of_zeros_and_is_counted(voc):
    write_xml(voc, FIRST, [])
    with pytest.warns(UserWarning, match=rf"1 of 40 photographs .* show none of the classes .*: {FIRST}"):
        data = datamodule(voc.parent.parent)
        data.setup("fit")
    part, place = next((part, ids(data)[part].index(FIRST)) for part in ids(data) if FIRST in ids(data)[part])
    assert data._part(part, None)[place]["label"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("crop", ["resize", "random"])
def test_a_mask_has_no_invented_classes_and_lies_on_its_image(crop):
    """Trap 10: a mask of classes 1 and 3 resized by mixing would hold 2; and it must move with its image."""
    mask = np.where(np.arange(97)[:, None] < 50, 1, 3).astype(np.uint8).repeat(71, axis=1)
    mask[:, 30:40] = 255
    image = Image.fromarray(mask[..., None].repeat(3, axis=2))
    for number in range(5):
        view = View(32, crop, "nearest")
        pixels, labels = view(image, mask, np.random.default_rng(number))
        assert pixels.shape == (32, 32, 3) and labels.shape == (32, 32)
        assert set(np.unique(labels)) <= {1, 3, 255}
        assert np.array_equal(pixels[..., 0], labels)


def test_images_are_mixed_between_pixels_unless_asked_otherwise():
    pixels = (np.indices((40, 40)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    image = Image.fromarray(pixels)
    smooth, nearest = (View(32, "resize", way)(image, None, None)[0] for way in ("bilinear", "nearest"))
    assert set(np.unique(nearest)) <= {0, 255} and len(np.unique(smooth)) > 2


def test_a_random_crop_keeps_the_scale_differs_by_draw_and_is_the_middle_where_it_is_judged():
    image = Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64).astype(np.uint8))
    image = image.convert("RGB")
    view = View(32, "random", "bilinear")
    whole = np.asarray(image)
    places = set()
    for number in range(8):
        pixels, _ = view(image, None, np.random.default_rng(number))
        found = [(y, x) for y in range(17) for x in range(33) if np.array_equal(whole[y : y + 32, x : x + 32], pixels)]
        assert found
        places.add(found[0])
    assert len(places) > 3
    assert np.array_equal(view(image, None, None)[0], whole[8:40, 16:48])
    small = Image.fromarray(np.zeros((20, 60, 3), np.uint8))
    assert view(small, None, np.random.default_rng(0))[0].shape == (32, 32, 3)


def test_void_is_ignored_or_is_background_as_in_the_public_code(voc):
    ignored = set_up(voc, task="segmentation", pool_list="trainval")._part("train", None)[0]["mask"]
    counted = set_up(voc, task="segmentation", pool_list="trainval", void_as_background=True)._part("train", None)[0]
    assert (ignored == 255).any() and not (counted["mask"] == 255).any()
    assert torch.equal(torch.where(ignored == 255, 0, ignored), counted["mask"])


# ---- the split ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_each_image_is_in_one_part_the_ids_are_written_and_travel_in_the_state(voc, task):
    data = set_up(voc, task=task, pool_list="trainval")
    split = ids(data)
    everything = [name for names in split.values() for name in names]
    assert len(everything) == len(set(everything)) == 40
    assert [len(split[part]) for part in ("train", "val", "test")] == pytest.approx([28, 8, 4], abs=2)
    for part, names in split.items():
        assert (voc.parent.parent / "run" / "split" / f"{part}.txt").read_text().split() == names
    assert ids(set_up(voc, task=task, pool_list="trainval", seed=9)) == split  # the run's seed does not move it
    assert ids(set_up(voc, task=task, pool_list="trainval", split_seed=1)) != split


def test_segmentation_is_split_by_the_classes_of_the_masks_not_by_the_xml_files(voc):
    for path in (voc / "Annotations").glob("*.xml"):
        write_xml(voc, path.stem, ["bird"])
    data = set_up(voc, task="segmentation", pool_list="trainval", shares=[0.5, 0.25, 0.25])
    dogs = {
        part: np.mean([3 in np.array(Image.open(voc / "SegmentationClass" / f"{n}.png")) for n in names])
        for part, names in ids(data).items()
    }
    everywhere = np.average(list(dogs.values()), weights=[len(names) for names in ids(data).values()])
    assert max(abs(share - everywhere) for share in dogs.values()) <= 0.06


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_fraction_of_the_labels_keeps_the_shares_of_the_classes_and_the_other_parts(voc, fraction):
    every, some = set_up(voc), set_up(voc, label_fraction=fraction)
    assert set(ids(some)["train"]) < set(ids(every)["train"])
    assert len(ids(some)["train"]) == pytest.approx(fraction * len(ids(every)["train"]), abs=1.5)
    assert ids(some)["val"] == ids(every)["val"] and ids(some)["test"] == ids(every)["test"]

    def shares(data: VOCTransferDataModule) -> np.ndarray:
        return np.mean([[c in data._known[name].classes for c in CLASSES] for name in ids(data)["train"]], axis=0)

    # No class further from its share than a lot of one image and a half.
    assert np.abs(shares(some) - shares(every)).max() <= 1.5 / len(ids(some)["train"])


def test_lists_of_the_layout_are_taken_as_they_are(voc):
    split = ids(set_up(voc, split="lists"))
    assert [len(split[part]) for part in ("train", "val", "test")] == [24, 8, 8]
    assert split["train"][0] == FIRST


def test_coco128_is_split_by_its_own_lists(sample_data):
    root = sample_data / "coco128_voc"
    changes = {"split": "lists", "test_list": "val", "class_names": CLASS_NAMES, "num_classes": 20}
    for task in ("classification", "segmentation"):
        data = datamodule(root, task=task, folder="unused", **changes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data.setup("test")
        lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
        assert ids(data)["train"] == (lists / "train.txt").read_text().split()
        assert ids(data)["test"] == ids(data)["val"] == (lists / "val.txt").read_text().split()
        assert [len(names) for names in ids(data).values()] == [65, 32, 32]


def test_a_checkpoint_s_split_is_judged_unless_the_data_are_others(voc, tmp_path):
    data = set_up(voc)
    state = data.state_dict()
    moved = {part: list(reversed(names)) for part, names in state["split"].items()}
    again = set_up(voc)
    again.trainer = Judging()
    again.load_state_dict({**state, "split": moved})
    assert ids(again)["test"] == moved["test"]
    other = write_voc(tmp_path / "other")
    for path in [*other.rglob("*.jpg"), *other.rglob("*.xml")]:
        path.rename(path.with_name(f"x{path.name}"))
    elsewhere = set_up(other)
    elsewhere.trainer = Judging()
    elsewhere.load_state_dict(state)
    assert all(name.startswith("x") for name in ids(elsewhere)["test"])
    (voc / "JPEGImages" / f"{FIRST}.jpg").unlink()
    (voc / "Annotations" / f"{FIRST}.xml").unlink()
    fewer = set_up(voc)
    fewer.trainer = Judging()
    with pytest.raises(InputError, match=rf"1 of 40 images of the checkpoint's split are not below .*: {FIRST}"):
        fewer.load_state_dict(state)


def test_another_split_that_judges_by_images_that_were_trained_on_is_refused(voc):
    state = set_up(voc).state_dict()
    other = set_up(voc, split_seed=1)
    other.trainer = Judging()
    seen = sorted(set(state["split"]["train"]) & set(ids(other)["test"]))
    assert seen
    with pytest.raises(InputError, match=rf"{len(seen)} of {len(ids(other)['test'])} images .* trained on: {seen[0]}"):
        other.load_state_dict(state)
    fewer = set_up(voc, label_fraction=0.5)  # another split with the same images to judge by
    fewer.trainer = Judging()
    fewer.load_state_dict(state)
    assert ids(fewer)["test"] == state["split"]["test"]


def test_one_image_more_does_not_change_what_a_checkpoint_is_judged_by(voc):
    state = set_up(voc).state_dict()
    name = "2006_000000"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(voc / "JPEGImages" / f"{name}.jpg")
    write_xml(voc, name, ["cat"])
    more = set_up(voc)
    assert set(ids(more)["test"]) & set(state["split"]["train"])
    more.trainer = Judging()
    more.load_state_dict(state)
    assert ids(more) == state["split"]


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_a_test_reads_the_test_part_in_its_own_batches_from_the_middle_of_each_image(voc, task):
    """And a prediction is one picture at a time, whatever the batches of a test are."""
    data = set_up(voc, task=task, split="lists", crop="random", eval_batch_size=3)
    data.trainer = Judging()
    for part, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert [name for batch in batches for name in batch["name"]] == ids(data)[part]
        assert [len(batch["image"]) for batch in batches] == [3, 3, 2]
        for name, image in zip(batches[0]["name"], batches[0]["image"], strict=True):
            whole = np.asarray(Image.open(voc / "JPEGImages" / f"{name}.jpg"))
            assert np.array_equal(image.numpy().transpose(1, 2, 0), whole[4:36, 9:41])
    to_predict = datamodule(voc, task=task, predict_root=str(voc / "JPEGImages"), eval_batch_size=3)
    to_predict.setup("predict")
    to_predict.trainer = Judging()
    assert [len(batch["name"]) for batch in to_predict.predict_dataloader()] == [1] * 40


def test_a_fit_does_not_go_on_with_another_split(voc):
    class Fitting(Judging):
        state = SimpleNamespace(fn="fit")

    state = set_up(voc).state_dict()
    other = set_up(voc, split_seed=1)
    other.trainer = Fitting()
    with pytest.raises(InputError, match="trained on another split"):
        other.load_state_dict(state)


# ---- order and batches -------------------------------------------------------------------------------


class Fit(Judging):
    """A trainer that stands at the start of an epoch."""

    def __init__(self, epoch: int) -> None:
        batches = SimpleNamespace(is_last_batch=False, current=SimpleNamespace(processed=0))
        self.fit_loop = SimpleNamespace(
            epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=epoch, ready=epoch)),
            epoch_loop=SimpleNamespace(batch_progress=batches),
        )


def order(data: VOCTransferDataModule, epoch: int) -> list[Draw]:
    data.trainer = Fit(epoch)
    return list(data.train_dataloader().sampler)


def test_two_phases_see_the_images_in_the_order_in_which_one_phase_sees_them(voc):
    """Arms differ in nothing but the weights they start from and their phases."""
    one_phase, second_phase = set_up(voc, crop="random"), set_up(voc, crop="random", epochs_before=3)
    for epoch in (0, 1):
        there, here = order(one_phase, epoch + 3), order(second_phase, epoch)
        assert there == here
        view_there = one_phase._part("train", one_phase.seed)[there[0]]["image"]
        assert torch.equal(view_there, second_phase._part("train", second_phase.seed)[here[0]]["image"])
    assert order(one_phase, 0) != order(second_phase, 0)


def test_an_epoch_shows_each_image_even_where_the_images_are_fewer_than_a_batch(voc):
    data = set_up(voc, label_fraction=0.1)
    assert len(ids(data)["train"]) < 8
    drawn = order(data, 0)
    assert len(drawn) == 8 and {draw.index for draw in drawn} == set(range(len(ids(data)["train"])))


def test_pictures_to_predict_are_squares_with_the_whole_picture_beside(voc):
    folder = voc.parent.parent / "mine"
    folder.mkdir()
    Image.fromarray(np.zeros((50, 70), np.uint8)).save(folder / "grey.png")
    Image.fromarray(np.zeros((50, 70, 4), np.uint8), "CMYK").save(folder / "print.jpg")
    for task, whole in (("classification", False), ("segmentation", True)):
        data = datamodule(Path("gone"), task=task, predict_root=str(folder))
        data.setup("predict")
        batch = next(iter(DataLoader(data._to_predict)))
        assert batch["image"].shape == (1, 3, 32, 32) and batch["name"] == ["grey.png"]
        assert ("whole" in batch) == whole
        if whole:
            assert batch["whole"].shape == (1, 3, 50, 70)


# ---- what a user can get wrong -----------------------------------------------------------------------


def test_grey_and_cmyk_files_become_rgb_and_are_counted(voc):
    names = [f"2007_00000{number}" for number in range(3)]
    for name, mode in zip(names, ("L", "L", "CMYK"), strict=True):
        path = voc / "JPEGImages" / f"{name}.jpg"
        Image.open(path).convert(mode).save(path)
    with pytest.warns(UserWarning) as caught:
        data = datamodule(voc.parent.parent)
        data.setup("fit")
    said = " ".join(str(warning.message) for warning in caught)
    assert f"2 of 40 photographs of the list annotated are grey and become RGB: {names[0]}, {names[1]}" in said
    assert f"1 of 40 photographs of the list annotated are CMYK and become RGB: {names[2]}" in said
    assert all(data._part(part, None)[0]["image"].shape[0] == 3 for part in ids(data))


def test_an_image_smaller_than_32_pixels_is_left_out_with_a_message(voc):
    Image.fromarray(np.zeros((31, 200, 3), np.uint8)).save(voc / "JPEGImages" / f"{FIRST}.jpg")
    with pytest.warns(UserWarning, match=rf"1 photographs .* smaller than 32 pixels and left out: {FIRST}"):
        data = datamodule(voc.parent.parent)
        data.setup("fit")
    assert sum(len(names) for names in ids(data).values()) == 39


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_an_unreadable_file_is_named_and_left_out_only_if_asked(voc, damage):
    path = voc / "JPEGImages" / f"{FIRST}.jpg"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"no picture"}[damage])
    with pytest.raises(
        InputError, match=rf"1 of 40 photographs of the list annotated cannot be read: {FIRST}; .*skip_bad=true"
    ):
        datamodule(voc.parent.parent).setup("fit")
    with pytest.warns(UserWarning, match=rf"cannot be read: {FIRST}; they are left out"):
        data = datamodule(voc.parent.parent, skip_bad=True)
        data.setup("fit")
    assert sum(len(names) for names in ids(data).values()) == 39


def test_nothing_usable_is_an_error_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 photographs of here can be used"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usable_photographs({"a": tmp_path / "a.jpg"}, "here", skip_bad=True, least_side=32)


def test_an_unknown_class_is_named_with_its_file(voc):
    write_xml(voc, FIRST, ["bird", "catt"])
    with pytest.raises(InputError, match=rf"{FIRST}\.jpg names the class 'catt', .* did you mean cat"):
        set_up(voc)


def spoil_mask(voc: Path) -> None:
    palette_image(np.zeros((5, 5), np.uint8)).save(voc / "SegmentationClass" / f"{FIRST}.png")


def test_a_root_that_is_none_says_what_it_must_hold(tmp_path):
    with pytest.raises(InputError, match=r"data\.root=.*gone is no folder: it must hold VOCdevkit/VOC2012"):
        datamodule(tmp_path / "gone").setup("fit")


@pytest.mark.parametrize(
    ("damage", "changes", "sentence"),
    [
        (
            lambda voc: voc.parent.rename(voc.parent.parent / "gone"),
            {},
            "no XML file in .*: it must hold VOCdevkit",
        ),
        (
            lambda voc: (voc / "Annotations" / f"{FIRST}.xml").write_text("<a>"),
            {},
            rf"{FIRST}\.xml cannot be read as XML",
        ),
        (lambda voc: (voc / "JPEGImages" / f"{FIRST}.jpg").unlink(), {}, rf"1 of the 40 images .* missing.*{FIRST}"),
        (lambda voc: [p.unlink() for p in (voc / "Annotations").iterdir()], {}, "there is no XML file in"),
        (
            lambda voc: (voc / "SegmentationClass" / f"{FIRST}.png").unlink(),
            {"task": "segmentation", "pool_list": "trainval"},
            rf"1 of 40 images of the list trainval have no mask: {FIRST}",
        ),
        (spoil_mask, {"task": "segmentation", "pool_list": "trainval"}, rf"1 masks .* another size .*{FIRST}"),
        (lambda voc: None, {"split": "lists", "test_list": "train"}, "24 images are in both train and test"),
        (lambda voc: None, {"split": "lists", "test_list": "tset"}, "no list .*tset.*did you mean test"),
        (lambda voc: None, {"num_classes": 4}, "data.num_classes=4 but data.class_names lists 3"),
        (lambda voc: None, {"label_fraction": 0.0}, "data.label_fraction=0.0 must be above 0"),
        (lambda voc: None, {"shares": [0.7, 0.3]}, "must be three numbers"),
        (lambda voc: None, {"shares": [0.7, 0.4, 0.1]}, "add up to 1"),
        (lambda voc: None, {"side": 0}, "data.side=0 must be 1 or more"),
    ],
)
def test_what_is_missing_or_wrong_is_said_in_a_sentence(voc, damage, changes, sentence):
    damage(voc)
    with pytest.raises(InputError, match=sentence):
        set_up(voc, **changes)
