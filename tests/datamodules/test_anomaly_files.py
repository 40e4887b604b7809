"""Readers of the official layouts: what they list, and the sentences for what is wrong."""

import csv
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.anomaly_files import (
    FolderReader,
    KSDD2Reader,
    MagneticTileReader,
    MVTecADReader,
    SensumReader,
    VisaReader,
    hold_out,
    read_defects,
    tile_groups,
)
from runs.errors import InputError
from tests.datamodules.anomaly_layouts import (
    Source,
    generated_sources,
    lay_folder,
    lay_ksdd2,
    lay_mvtec,
    lay_sensum,
    lay_tiles,
    lay_visa,
    lay_visa_converted,
    tile_sources,
)


@pytest.fixture
def sources(tmp_path) -> list[Source]:
    return generated_sources(tmp_path / "sources")


def counts(images) -> tuple[int, int]:
    """Normal and defective images of a list."""
    defective = sum(image.defective for image in images)
    return len(images) - defective, defective


def ksdd2(**changes) -> KSDD2Reader:
    return KSDD2Reader(**{"split_file": None, "val_split": 0.0, "split_seed": 0, **changes})


def tiles(**changes) -> MagneticTileReader:
    return MagneticTileReader(**{"test_split": 0.5, "val_split": 0.0, "split_seed": 0, **changes})


def folder_reader(**changes) -> FolderReader:
    settings = {
        "normal_dir": "normal",
        "abnormal_dir": "abnormal",
        "mask_dir": "masks",
        "mask_above": 127,
        "test_split": 0.34,
        "val_split": 0.0,
        "split_seed": 0,
    }
    return FolderReader(**{**settings, **changes})


LAYOUTS = {
    "mvtec": (lay_mvtec, MVTecADReader(), "tile", None),
    "visa": (lay_visa, VisaReader(), "tile", None),
    "visa_converted": (lay_visa_converted, VisaReader(), "tile", None),
    "ksdd2": (lay_ksdd2, ksdd2(), None, None),
    "sensum": (lay_sensum, SensumReader(0.0, 0), "softgel", 1),
    "folder": (lay_folder, folder_reader(), None, None),
}


def check_layout(name, sources, root) -> None:
    lay, reader, category, fold = LAYOUTS[name]
    lay(sources, root)
    splits = reader.read(root, category, fold, "supervised")
    for images in (splits.train, splits.test):
        assert all(image.image.is_file() for image in images)
        assert all((image.mask is not None) == image.defective for image in images)
    found = sorted(read_defects(i.mask, reader.mask_above).sum() for i in (*splits.train, *splits.test) if i.defective)
    true = sorted(read_defects(source.mask, 127).sum() for source in sources if source.defective)
    assert found == true  # every defect, pixel by pixel, whatever values its mask has
    assert not {image.image for image in splits.train} & {image.image for image in splits.test}
    normal = sum(not source.defective for source in sources)
    assert counts([*splits.train, *splits.test]) == (normal, len(sources) - normal)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_layout_is_read_with_its_defects(name, sources, tmp_path):
    check_layout(name, sources, tmp_path / "root")


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_layout_is_read_with_files_of_real_tiles(name, sample_data, tmp_path):
    check_layout(name, tile_sources(sample_data), tmp_path / "root")


def test_mvtec_trains_on_good_and_judges_the_rest(sources, tmp_path):
    splits = MVTecADReader().read(lay_mvtec(sources, tmp_path / "root"), "tile", None, "unsupervised")
    assert counts(splits.train) == (3, 0) and counts(splits.test) == (3, 4)
    assert all(image.name.startswith("tile/train/good/") for image in splits.train)


def test_visa_is_split_by_its_table_and_not_by_the_order_of_its_folder(sources, tmp_path):
    root = lay_visa(sources, tmp_path / "root")
    splits = VisaReader().read(root, "tile", None, "unsupervised")
    with (root / "split_csv" / "1cls.csv").open() as file:
        rows = list(csv.DictReader(file))
    for part in ("train", "test"):
        listed = [row["image"] for row in rows if row["split"] == part]
        assert [image.name for image in getattr(splits, part)] == listed
    first = sorted((root / "tile" / "Data" / "Images" / "Normal").iterdir())[0]
    assert first not in {image.image for image in splits.train}  # the first by name is for the test


def test_visa_without_its_table_is_not_split_by_guessing(sources, tmp_path):
    root = lay_visa(sources, tmp_path / "root")
    (root / "split_csv" / "1cls.csv").unlink()
    with pytest.raises(InputError, match=r"there is no .*1cls\.csv: without it nobody knows"):
        VisaReader().read(root, "tile", None, "unsupervised")


def test_visas_small_class_numbers_are_defects(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 1], [2, 3]], dtype=np.uint8)).save(path)
    assert read_defects(path, VisaReader.mask_above).tolist() == [[False, True], [True, True]]
    assert not read_defects(path, MVTecADReader.mask_above).any()


def test_soft_edges_are_cut_at_127(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 100], [127, 128]], dtype=np.uint8)).save(path)
    assert read_defects(path, MagneticTileReader.mask_above).tolist() == [[False, False], [False, True]]


def test_ksdd2_tells_labels_by_masks(sources, tmp_path):
    splits = ksdd2().read(lay_ksdd2(sources, tmp_path / "root"), None, None, "supervised")
    assert counts(splits.train) == (3, 2) and counts(splits.test) == (3, 2)


def test_ksdd2_trains_on_the_official_list_where_it_is_named(sources, tmp_path):
    root = lay_ksdd2(sources, tmp_path / "root")
    every = ksdd2().read(root, None, None, "supervised").train
    ids = [int(image.image.stem) for image in every]
    pairs = [(ids[0], True), (ids[3], True), (ids[4], False)]
    (root / "split_1.pyb").write_bytes(pickle.dumps([pairs, []]))
    train = ksdd2(split_file="split_1.pyb").read(root, None, None, "supervised").train
    assert [image.image.stem for image in train] == [str(number) for number, _ in pairs]
    assert [image.mask is not None for image in train] == [False, True, False]
    assert train[2].defective  # known to be, but where is not to be used


def test_ksdd2_names_images_without_a_mask(sources, tmp_path):
    root = lay_ksdd2(sources, tmp_path / "root")
    (root / "train" / "10001_GT.png").unlink()
    with pytest.raises(InputError, match=r"1 of 5 images below .* have no mask <id>_GT\.png.*train/10001\.png"):
        ksdd2().read(root, None, None, "supervised")


def test_sensums_folds_are_the_official_ones(sources, tmp_path):
    root = lay_sensum(sources, tmp_path / "root")
    tested = []
    for fold in range(3):
        splits = SensumReader(0.0, 0).read(root, "capsule", fold, "supervised")
        assert [int(i.image.stem) % 3 for i in splits.test] == [fold] * len(splits.test)
        tested += [image.name for image in splits.test]
    assert len(tested) == len(set(tested)) == len(sources)


def test_sensum_without_lists_draws_stratified_folds_and_says_so(sources, tmp_path):
    root = lay_sensum(sources, tmp_path / "root", lists=False)
    tested = []
    for fold in range(3):
        with pytest.warns(UserWarning, match="three stratified folds are drawn instead.*cannot be compared"):
            splits = SensumReader(0.0, 0).read(root, "capsule", fold, "supervised")
        assert counts(splits.test)[0] == 2 and counts(splits.test)[1] in (1, 2)
        tested += [image.name for image in splits.test]
    assert len(tested) == len(set(tested)) == len(sources)


def test_sensums_partly_annotated_list_hides_masks(sources, tmp_path):
    root = lay_sensum(sources, tmp_path / "root")
    for path in (root / "sensum_splits").rglob("pos_100.pckl"):
        path.unlink()
    train = SensumReader(0.0, 0).read(root, "capsule", 0, "supervised").train
    assert all(image.mask is None for image in train if image.defective)


# ---- magnetic tiles ---------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["unsupervised", "supervised"])
@pytest.mark.parametrize("seed", range(3))
def test_no_tile_is_in_two_lists(tmp_path, regime, seed):
    root = lay_tiles(tmp_path / "root")
    splits = tiles(val_split=0.3, split_seed=seed).read(root, None, None, regime)
    lists = [{image.group for image in part} for part in (splits.train, splits.val, splits.test)]
    assert all(lists)
    assert not (lists[0] & lists[1] or lists[0] & lists[2] or lists[1] & lists[2])
    # A tile was photographed three times: a split of images would have torn some apart.
    assert all(sum(image.group == group for image in splits.test) == 3 for group in lists[2])
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == 36
    if regime == "unsupervised":
        assert counts(splits.train)[1] == 0


def test_a_category_keeps_its_defects_alone(tmp_path):
    root = lay_tiles(tmp_path / "root")
    splits = tiles().read(root, "Crack", None, "supervised")
    assert {i.group.split("_")[0] for i in (*splits.train, *splits.test)} == {"Crack", "Free"}
    with pytest.raises(InputError, match=r"data\.category=Krack is no class of defects: did you mean Crack"):
        tiles().read(root, "Krack", None, "supervised")


def test_the_rule_for_tiles_gives_the_groups_of_the_whole_set(sample_data):
    with (sample_data / "magnetic_tile" / "tile_groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1344
    for name in {row["class"] for row in rows}:
        own = {row["name"]: row["tile_group"] for row in rows if row["class"] == name}
        assert {stem: f"{name}_{tile}" for stem, tile in tile_groups(own).items()} == own


def test_the_real_sample_is_split_by_tile(sample_data):
    splits = tiles().read(sample_data / "magnetic_tile", None, None, "supervised")
    assert len(splits.train) + len(splits.test) == 171
    assert not {i.group for i in splits.train} & {i.group for i in splits.test}
    names = {i.name.split("/")[0] for i in splits.test}
    assert names == {f"MT_{n}" for n in ("Blowhole", "Break", "Crack", "Fray", "Free", "Uneven")}


def test_a_name_of_another_form_is_refused():
    with pytest.raises(InputError, match="photo1 is no name of the magnetic tile set"):
        tile_groups(["photo1"])


def test_a_folder_without_tiles_says_what_it_should_hold(tmp_path):
    with pytest.raises(InputError, match="holds no magnetic tiles: it must hold MT_Free"):
        tiles().read(tmp_path, None, None, "supervised")


# ---- one's own folder ------------------------------------------------------------------------------


def test_a_folder_without_masks_trains_unsupervised_and_judges_all_defects(sources, tmp_path):
    root = lay_folder(sources, tmp_path / "root", masks=False)
    splits = folder_reader(mask_dir=None).read(root, None, None, "unsupervised")
    assert counts(splits.train) == (4, 0) and counts(splits.test) == (2, 4)
    assert all(image.mask is None for image in splits.test)


def test_masks_that_lie_there_unused_are_pointed_at(sources, tmp_path, recwarn):
    root = lay_folder(sources, tmp_path / "root")
    with pytest.warns(UserWarning, match=r"root/masks is there and not used: set data\.reader\.mask_dir=masks"):
        folder_reader(mask_dir=None).read(root, None, None, "unsupervised")
    recwarn.clear()
    folder_reader().read(root, None, None, "unsupervised")
    folder_reader(mask_dir=None, abnormal_dir=None).read(root, None, None, "unsupervised")
    shutil.rmtree(root / "masks")
    folder_reader(mask_dir=None).read(root, None, None, "unsupervised")
    assert not recwarn.list


def test_defects_are_kept_back_to_set_thresholds_by(sources, tmp_path):
    root = lay_folder(sources, tmp_path / "root")
    splits = folder_reader(val_split=0.25).read(root, None, None, "unsupervised")
    assert counts(splits.val) == (1, 1) and counts(splits.test) == (2, 3) and counts(splits.train) == (3, 0)


def test_a_folder_of_normal_images_alone_is_enough(sources, tmp_path):
    root = lay_folder(sources, tmp_path / "root")
    shutil.rmtree(root / "abnormal")
    with pytest.raises(InputError, match=r"abnormal_dir=abnormal: .* where there are no defective images"):
        folder_reader().read(root, None, None, "unsupervised")
    splits = folder_reader(abnormal_dir=None).read(root, None, None, "unsupervised")
    assert counts(splits.train) == (4, 0) and counts(splits.test) == (2, 0)


def test_masks_may_bear_the_name_of_their_image_or_end_in_mask(sources, tmp_path):
    root = lay_folder(sources, tmp_path / "root")
    first, *_ = sorted((root / "masks").iterdir())
    first.rename(first.with_name(f"{first.stem}_mask.png"))
    splits = folder_reader().read(root, None, None, "supervised")
    assert all(image.mask is not None for image in (*splits.train, *splits.test) if image.defective)


# ---- sentences ---------------------------------------------------------------------------------------


def test_an_unknown_category_lists_what_is_there(sources, tmp_path):
    root = lay_mvtec(sources, tmp_path / "root", "bottle")
    lay_mvtec(sources, tmp_path / "root", "cable")
    with pytest.raises(InputError, match=r"data\.category=botle is not below .*: did you mean bottle"):
        MVTecADReader().read(root, "botle", None, "unsupervised")
    with pytest.raises(InputError, match=r"data\.category=None .*known are: bottle, cable"):
        MVTecADReader().read(root, None, None, "unsupervised")
    visa = lay_visa(sources, tmp_path / "visa")
    with pytest.raises(InputError, match=r"data\.category=tyle: .* has no such object: did you mean tile"):
        VisaReader().read(visa, "tyle", None, "unsupervised")


def test_categories_and_folds_that_a_set_does_not_have_are_refused(sources, tmp_path):
    root = lay_ksdd2(sources, tmp_path / "root")
    with pytest.raises(InputError, match=r"data\.category=x: KolektorSDD2 has no categories"):
        ksdd2().read(root, "x", None, "supervised")
    with pytest.raises(InputError, match=r"data\.fold=1: KolektorSDD2 has no folds"):
        ksdd2().read(root, None, 1, "supervised")
    with pytest.raises(InputError, match=r"data\.fold=3: SensumSODF has the folds 0, 1 and 2"):
        SensumReader(0.0, 0).read(lay_sensum(sources, tmp_path / "s"), "capsule", 3, "supervised")


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(InputError, match="cannot be kept back"):
        hold_out([], share, 0)


def test_an_unreadable_mask_is_named(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"the mask .*mask\.png cannot be read"):
        read_defects(tmp_path / "mask.png", 0)
