"""VOC's layout: labels, masks, augmentation, and what a user can get wrong."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.voc import palette_image
from datamodules.photograph_files import LabelledFolderReader, VOCReader, open_photograph
from datamodules.voc_segmentation import Augmentation, VOCSegmentationDataModule
from runs.errors import InputError

CLASSES = ["bird", "cat", "dog"]
TRAIN, VAL = ["000000000086", "2007_000032", "000000000009"], ["000000000042", "2007_000033"]


def write_voc(root: Path) -> Path:
    """Five photographs in VOC's layout; returns its VOC2012 folder."""
    folder = root / "VOCdevkit" / "VOC2012"
    for part in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    objects = {TRAIN[0]: "cat", TRAIN[1]: "dog bird dog", TRAIN[2]: "", VAL[0]: "cat", VAL[1]: "bird"}
    for name, shown in objects.items():
        pixels = generator.integers(0, 256, (30, 40, 3)).astype(np.uint8)
        picture = Image.fromarray(pixels)
        if name == TRAIN[0]:
            picture = picture.convert("L")
        picture.save(folder / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros((30, 40), np.uint8)
        for label in set(shown.split()):
            mask[5:20, 10 * CLASSES.index(label) : 10 * CLASSES.index(label) + 8] = CLASSES.index(label) + 1
        mask[0] = 255
        palette_image(mask).save(folder / "SegmentationClass" / f"{name}.png")
        difficult = {place: int(place == 1) for place in range(3)}  # the second object of an image
        xml = "".join(
            f"<object><name>{label}</name><difficult>{difficult[place]}</difficult></object>"
            for place, label in enumerate(shown.split())
        )
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{xml}</annotation>")
    for list_name, names in (("train", TRAIN), ("val", VAL)):
        (folder / "ImageSets" / "Segmentation" / f"{list_name}.txt").write_text("\n".join(names) + "\n")
    return folder


def datamodule(root: Path, **changes) -> VOCSegmentationDataModule:
    settings = {
        "reader": VOCReader("SegmentationClass"),
        "root": str(root),
        "class_names": CLASSES,
        "num_classes": 3,
        "train_list": "train",
        "val_list": "val",
        "crop": 32,
        "resize_long": [24, 64],
        "flip": 0.5,
        "pad_label": "ignore",
        "pad_colour": [124, 116, 104],
        "batch_size": 2,
        "predict_root": None,
        "num_workers": 0,
        "pin_memory": False,
        "seed": 3,
    }
    return VOCSegmentationDataModule(**{**settings, **changes})


@pytest.fixture
def voc(tmp_path) -> Path:
    return write_voc(tmp_path)


def set_up(voc: Path, **changes) -> VOCSegmentationDataModule:
    data = datamodule(voc.parent.parent, **changes)
    data.setup("fit")
    return data


class Rounds:
    """As a RoundReader: a generation by hand."""

    def __init__(self, generation: dict | None) -> None:
        self.generation = generation


# ---- what is read ----------------------------------------------------------------------------------


def test_names_stay_strings_and_labels_are_all_objects_difficult_ones_included(voc):
    images = set_up(voc).training_images()
    assert [images[i]["name"] for i in range(3)] == TRAIN
    assert [images[i]["index"] for i in range(3)] == [0, 1, 2]
    assert images[0]["label"].tolist() == [0, 1, 0]
    assert images[1]["label"].tolist() == [1, 0, 1]


def test_an_image_without_objects_has_no_label_and_stays_in_the_list(voc):
    sample = set_up(voc).training_images()[2]
    assert sample["label"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_a_turned_photograph_is_trained_on_and_judged_upright(voc, orientation, turns):
    """Its mask is drawn on what one sees."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in (TRAIN[1], VAL[0]):
        path = voc / "JPEGImages" / f"{name}.jpg"
        with Image.open(path) as picture:
            stored = np.array(picture.convert("RGB"))
        Image.fromarray(stored).save(path, exif=exif, quality=95)
        with Image.open(path) as picture:
            upright = np.rot90(np.array(picture), turns)
        mask_path = voc / "SegmentationClass" / f"{name}.png"
        palette_image(np.zeros(upright.shape[:2], np.uint8)).save(mask_path)
        data = set_up(voc)
        sample = data.training_images()[1] if name == TRAIN[1] else data._val[0]
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), upright)
        assert sample["score_mask"].shape == sample["image"].shape[1:]
    assert data._train[1]["image"].shape == (3, 32, 32)


def test_of_16_bits_the_upper_8_are_kept_and_more_are_refused(tmp_path):
    deep = np.arange(0, 65536, 547).astype(np.uint16).reshape(10, -1)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.array(open_photograph(tmp_path / "deep.png"))[..., 0], deep >> 8)
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match=r"float\.tif has 32 bits a pixel"):
        open_photograph(tmp_path / "float.tif")


def test_a_grey_jpeg_becomes_three_equal_channels(voc):
    image = set_up(voc).training_images()[0]["image"]
    assert image.shape == (3, 30, 40) and image.dtype == torch.uint8
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_whole_images_come_as_they_are_with_masks_to_score_by(voc):
    sample = set_up(voc).training_images()[1]
    with Image.open(voc / "JPEGImages" / f"{TRAIN[1]}.jpg") as picture:
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), np.array(picture))
    with Image.open(voc / "SegmentationClass" / f"{TRAIN[1]}.png") as picture:
        assert np.array_equal(sample["score_mask"].numpy(), np.array(picture))
    assert sample["score_mask"].unique().tolist() == [0, 1, 3, 255]


# ---- training views ----------------------------------------------------------------------------------


def test_a_training_sample_holds_no_true_mask_and_an_empty_one_before_the_first_round(voc):
    data = set_up(voc, crop=8)
    for rounds in (None, Rounds(None), Rounds({"other": {}}), Rounds({"mask": {}})):
        if rounds is not None:
            data.use_rounds("any", rounds)
        sample = data._train[0]
        assert set(sample) == {"image", "label", "pseudo_mask", "index", "name"}
        assert sample["pseudo_mask"].eq(0).all()


def test_the_pseudo_mask_is_read_from_the_round_that_holds(voc):
    data, rounds = set_up(voc, crop=8, resize_long=[40, 40]), Rounds(None)
    data.use_rounds("any", rounds)
    rounds.generation = {"mask": {0: np.full((30, 40), 2, np.uint8)}}
    assert data._train[0]["pseudo_mask"].eq(2).all()
    assert data._train[1]["pseudo_mask"].eq(0).all()  # no mask of its own in the round
    rounds.generation = {"mask": {0: np.full((30, 41), 2, np.uint8)}}
    with pytest.raises(InputError, match="is 41 x 30 pixels and the image 40 x 30"):
        data._train[0]


@pytest.mark.parametrize("shape", [(90, 60), (60, 90), (37, 81)])
def test_mask_and_image_share_one_geometry(shape):
    """The mask marks the bright half of the image, before and after."""
    pixels = np.zeros((*shape, 3), np.uint8)
    pixels[: shape[0] // 2, shape[1] // 3 :] = 255
    mask = (pixels[..., 0] > 127).astype(np.uint8)
    augment = Augmentation((40, 120), 0.5, 64, "ignore", (0, 0, 0))
    agreed, widths, mirrored = [], set(), set()
    for number in range(40):
        out, out_mask = augment(Image.fromarray(pixels), mask, np.random.default_rng(number))
        assert out.shape == (64, 64, 3) and out_mask.shape == (64, 64)
        inside = out_mask != 255
        assert out[~inside].max(initial=0) == 0
        agreed.append(((out[..., 0] > 127) == (out_mask == 1))[inside].mean())
        widths.add(int(inside.any(axis=0).sum()))
        bright = out_mask[:, inside.any(axis=0)] == 1
        mirrored.add(bool(bright[:, 0].any()))
    assert min(agreed) > 0.97  # bicubic edges
    assert len(widths) > 3 and mirrored == {True, False}


def test_a_shift_of_the_mask_by_two_pixels_would_be_seen():
    """The test above can fail."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, ::4] = pixels[:, 1::4] = 255
    mask = (pixels[..., 0] > 127).astype(np.uint8)
    augment = Augmentation((90, 90), 0.0, 60, "ignore", (0, 0, 0))
    out, out_mask = augment(Image.fromarray(pixels), np.roll(mask, 2, axis=1), np.random.default_rng(0))
    assert ((out[..., 0] > 127) == (out_mask == 1)).mean() < 0.1


@pytest.mark.parametrize(("pad_label", "value"), [("ignore", 255), ("background", 0)])
def test_the_border_beyond_the_image_is_ignored_or_background_and_of_the_mean_colour(pad_label, value):
    augment = Augmentation((20, 20), 0.0, 32, pad_label, (124, 116, 104))
    image = Image.fromarray(np.full((10, 20, 3), 200, np.uint8))
    out, mask = augment(image, np.full((10, 20), 2, np.uint8), np.random.default_rng(0))
    inside = mask == 2
    assert inside.sum() == 200 and (mask[~inside] == value).all()
    assert (out[inside] == 200).all() and (out[~inside] == (124, 116, 104)).all()


def test_the_long_side_is_uniform_over_its_range():
    sides = []
    augment = Augmentation((30, 34), 0.0, 40, "ignore", (0, 0, 0))
    image = Image.fromarray(np.full((50, 100, 3), 200, np.uint8))
    for number in range(200):
        _, mask = augment(image, np.ones((50, 100), np.uint8), np.random.default_rng(number))
        sides.append(int((mask == 1).any(axis=0).sum()))
    values, counts = np.unique(sides, return_counts=True)
    assert values.tolist() == [30, 31, 32, 33, 34] and counts.min() > 20


def test_a_draw_is_augmented_alike_whoever_draws_it(voc):
    from datamodules.sampling import Draw

    first, again = (set_up(voc)._train[Draw(1, 17)] for _ in range(2))
    other = set_up(voc)._train[Draw(1, 18)]
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])


# ---- what is wrong -----------------------------------------------------------------------------------


def remove(path: str):
    return lambda folder: (folder / path).unlink()


def write(path: str, text: str):
    return lambda folder: (folder / path).write_text(text)


def other_size(folder: Path) -> None:
    palette_image(np.zeros((30, 41), np.uint8)).save(folder / "SegmentationClass" / f"{TRAIN[0]}.png")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            remove(f"JPEGImages/{TRAIN[0]}.jpg"),
            rf"1 of 3 images of the list .*train\.txt are missing .*{TRAIN[0]}\.jpg",
        ),
        (remove(f"Annotations/{VAL[0]}.xml"), rf"1 of 2 XML files of the list .*val\.txt are missing .*{VAL[0]}\.xml"),
        (write(f"Annotations/{TRAIN[0]}.xml", "<annotation>"), rf"{TRAIN[0]}\.xml cannot be read as XML"),
        (write(f"JPEGImages/{TRAIN[1]}.jpg", "no picture"), rf"1 of 3 images of train cannot be read: {TRAIN[1]}"),
        (other_size, rf"1 masks of the list train have another size than their image: {TRAIN[0]} \(41 x 30 instead of"),
        (remove("ImageSets/Segmentation/val.txt"), r"there is no list .*val\.txt.*: known are: train"),
        (write("ImageSets/Segmentation/val.txt", "\n"), "the list val below .* is empty"),
        (write("ImageSets/Segmentation/val.txt", f"{TRAIN[1]}\n"), f"1 images are in both .*{TRAIN[1]}"),
        (write("ImageSets/Segmentation/val.txt", f"{VAL[0]}\n{VAL[0]}\n"), f"names {VAL[0]} more than once"),
        (
            write(f"Annotations/{TRAIN[0]}.xml", "<a><object><name>catt</name></object></a>"),
            r"the class 'catt' \(image 000000000086 of the list train\) is none of data\.class_names: did you mean cat",
        ),
        (write("ImageSets/Segmentation/train.txt", f"{TRAIN[2]}\n"), "no image of the list train .* has a label"),
        (remove(f"SegmentationClass/{VAL[1]}.png"), rf"1 of 2 images of the list val have no mask .*{VAL[1]}"),
    ],
)
def test_damage_is_answered_with_where_it_is(voc, damage, sentence):
    damage(voc)
    with pytest.raises(InputError, match=sentence):
        set_up(voc)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_classes": 20}, r"data\.num_classes=20 but data\.class_names lists 3 names"),
        ({"num_classes": 255, "class_names": [str(c) for c in range(255)]}, r"num_classes=255: .*the values 1 to 254"),
        ({"resize_long": [64, 24]}, r"data\.resize_long=\[64, 24\] must be \[least, most\]"),
        ({"crop": 0}, r"data\.crop=0 must be 1 pixel or more"),
        ({"flip": 2.0}, r"data\.flip=2\.0 must be a probability"),
        ({"num_workers": -1}, r"data\.num_workers=-1"),
    ],
)
def test_settings_without_sense_are_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        datamodule(tmp_path, **changes)


def test_a_missing_root_says_what_the_folder_must_hold(tmp_path):
    with pytest.raises(InputError, match=r"gone is no folder: it must hold VOCdevkit/VOC2012"):
        datamodule(tmp_path / "gone").setup("fit")


def test_trainaug_without_its_list_says_where_it_comes_from(voc):
    with pytest.raises(InputError, match=r"no list .*trainaug\.txt \(trainaug needs the list of the SBD extension\)"):
        set_up(voc, train_list="trainaug")


def test_an_rgb_mask_is_decoded_by_its_colours_with_a_warning(voc):
    path = voc / "SegmentationClass" / f"{TRAIN[1]}.png"
    with Image.open(path) as picture:
        expected, rgb = np.array(picture), picture.convert("RGB")
    rgb.save(path)
    with pytest.warns(UserWarning, match="is an RGB picture"):
        sample = set_up(voc).training_images()[1]
    assert np.array_equal(sample["score_mask"].numpy(), expected)


def test_an_image_that_breaks_off_is_named_before_training(voc):
    path = voc / "JPEGImages" / f"{TRAIN[1]}.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole + b"made by a camera" * 100)  # what stands behind the picture does no harm
    set_up(voc)
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(InputError, match=f"1 of .* images of train cannot be read: {TRAIN[1]}"):
        set_up(voc)


def test_a_mask_with_a_foreign_colour_is_named_before_training(voc):
    path = voc / "SegmentationClass" / f"{TRAIN[1]}.png"
    with Image.open(path) as mask:
        size = mask.size
    Image.new("RGB", size, (200, 200, 200)).save(path)
    with pytest.raises(InputError, match=rf"{TRAIN[1]}\.png holds colours that VOC's map does not have"):
        set_up(voc)


def test_without_any_true_mask_training_reads_the_same(voc):
    before = [set_up(voc)._train[i] for i in range(3)]
    shutil.rmtree(voc / "SegmentationClass")
    data = set_up(voc)
    for old, new in zip(before, (data._train[i] for i in range(3)), strict=True):
        assert all(torch.equal(torch.as_tensor(old[k]), torch.as_tensor(new[k])) for k in ("image", "pseudo_mask"))
    assert "score_mask" not in data.training_images()[0]


# ---- own data, prediction ----------------------------------------------------------------------------


def write_folder(root: Path) -> None:
    (root / "images").mkdir()
    for name in ("a.png", "b.jpg", "c.png"):
        Image.fromarray(np.full((12, 10, 3), 90, np.uint8)).save(root / "images" / name)
    (root / "labels.csv").write_text("image,labels,list\na.png,cat; dog,train\nb.jpg,,train\nc.png,bird,val\n")


def test_a_folder_with_a_table_of_labels_trains_too(tmp_path):
    write_folder(tmp_path)
    data = datamodule(tmp_path, reader=LabelledFolderReader("masks"))
    data.setup("fit")
    images = data.training_images()
    assert [images[i]["label"].tolist() for i in range(2)] == [[0, 1, 1], [0, 0, 0]]
    assert "score_mask" not in images[0]
    (tmp_path / "masks").mkdir()
    palette_image(np.full((12, 10), 2, np.uint8)).save(tmp_path / "masks" / "a.png")
    data = datamodule(tmp_path, reader=LabelledFolderReader("masks"))
    data.setup("fit")
    assert data.training_images()[0]["score_mask"].eq(2).all()


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (None, r"there is no .*labels\.csv: it must hold images/ and labels\.csv"),
        ("image,labels\na.png,cat\n", r"labels\.csv has no column list"),
        ("image,labels,list\nz.png,cat,train\nc.png,cat,val\n", r"1 of 1 images of list train .* are missing .*z\.png"),
        ("image,labels,list\na.png,horse,train\nc.png,cat,val\n", "the class 'horse'"),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, table, sentence):
    write_folder(tmp_path)
    if table is None:
        (tmp_path / "labels.csv").unlink()
    else:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=sentence):
        datamodule(tmp_path, reader=LabelledFolderReader("masks")).setup("fit")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"image,labels,list\na.png,cat,train\nb.jpg,dog\n", r"labels\.csv, line 3: 2 cells instead of the 3"),
        (b"image,labels,list\na.png,cat,tarin\n", r"line 2 of .*labels\.csv: there is no list 'tarin'"),
        (b"image,labels,list\na.png,cat,dog,train\n", r"labels\.csv, line 2: 4 cells .*';' between them, not ','"),
        ("image,labels,list\nä.png,cat,train\n".encode("latin-1"), r"labels\.csv is not written in UTF-8"),
    ],
)
def test_a_broken_table_is_one_sentence(tmp_path, content, sentence):
    write_folder(tmp_path)
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        datamodule(tmp_path, reader=LabelledFolderReader("masks")).setup("fit")


def test_a_table_that_a_spreadsheet_saved_is_read_like_any_other(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "labels.csv"
    plain = LabelledFolderReader("masks").read(tmp_path, "train")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert LabelledFolderReader("masks").read(tmp_path, "train") == plain


def test_predicting_needs_no_training_data_and_finds_pictures_in_folders(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "deep/a.jpg"):
        Image.fromarray(np.full((12, 10), 90, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    data = datamodule(tmp_path / "gone", predict_root=str(tmp_path))
    data.setup("predict")
    samples = [data._to_predict[i] for i in range(2)]
    assert [sample["name"] for sample in samples] == ["b.png", "deep/a.jpg"]
    assert samples[0]["image"].shape == (3, 12, 10)


def test_a_turned_photograph_is_predicted_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(np.zeros((12, 10, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    data = datamodule(tmp_path, predict_root=str(tmp_path))
    data.setup("predict")
    assert data._to_predict[0]["image"].shape == (3, 10, 12)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"predict_root=.* is no folder"),
        ({}, "holds no picture"),
        ({"a.png": b"x"}, r"1 of 1 pictures of .* cannot be read: a\.png"),
    ],
)
def test_nothing_to_predict_is_one_sentence(tmp_path, content, sentence):
    folder = tmp_path / "pictures"
    if content is not None:
        folder.mkdir()
        for name, data in content.items():
            (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=sentence):
        datamodule(tmp_path, predict_root=str(folder)).setup("predict")
    with pytest.raises(InputError, match=r"data\.predict_root is not set"):
        datamodule(tmp_path).setup("predict")


def test_the_real_sample_is_read_whole(sample_data):
    from components.voc import CLASS_NAMES

    data = datamodule(sample_data / "coco128_voc", class_names=CLASS_NAMES, num_classes=20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("fit")
        assert (len(data._train), len(data._val)) == (65, 32)
        samples = [data.training_images()[i] for i in range(65)]
    for sample in samples:
        assert sample["score_mask"].shape == sample["image"].shape[1:]
        shown = set((sample["score_mask"].unique() - 1).tolist()) - {-1, 254}
        assert shown <= set(sample["label"].nonzero().flatten().tolist())


def test_every_process_must_have_an_image_to_judge(voc):
    from types import SimpleNamespace

    data = set_up(voc)
    data.trainer = SimpleNamespace(world_size=3, global_rank=0)
    with pytest.raises(InputError, match="2 images cannot be judged by 3 processes"):
        data.val_dataloader()
    data.trainer = SimpleNamespace(world_size=2, global_rank=1)
    assert [batch["name"] for batch in data.val_dataloader()] == [[VAL[1]]]


def test_fewer_scored_training_images_than_processes_are_told_before_training(voc):
    from types import SimpleNamespace

    for name in TRAIN[1:]:
        (voc / "SegmentationClass" / f"{name}.png").unlink()
    for processes in (1, 2):
        data = datamodule(voc.parent.parent)
        data.trainer = SimpleNamespace(world_size=processes, global_rank=0)
        if processes == 1:
            data.setup("fit")
            continue
        with pytest.raises(InputError, match="1 images cannot be judged by 2 processes"):
            data.setup("fit")


def test_a_batch_larger_than_the_list_is_one_sentence(voc):
    from types import SimpleNamespace

    data = set_up(voc, batch_size=4)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0)
    with pytest.raises(InputError, match=r"data\.batch_size=4 is more than the 3 images of train"):
        data.train_dataloader()
