"""Official layouts and SSL lists: ids, classes, splits and what is refused."""

from collections import Counter
from pathlib import Path

import pytest

from datamodules.clip_lists import ClipRecord, draw_labeled, read_ssl_list
from datamodules.hmdb51 import HMDB51Reader
from datamodules.kinetics400 import Kinetics400Reader
from datamodules.ucf101 import UCF101Reader
from runs.errors import InputError
from tests.datamodules.tiny_videos import CLASSES


def ucf() -> UCF101Reader:
    return UCF101Reader("ucfTrainTestlist")


def test_full_official_ucf101_lists_parse(real_root: Path) -> None:
    reader = UCF101Reader("ucfTrainTestlist_full")
    names = reader.class_names(real_root)
    train, test = reader.read_split(real_root, 1)
    assert (len(names), len(train), len(test)) == (101, 9537, 3783)
    assert not {r.path for r in train} & {r.path for r in test}
    for records in (train, test):
        assert all(record.path.startswith(f"{record.class_name}/") for record in records)
    lines = (real_root / "ucfTrainTestlist_full" / "trainlist01.txt").read_text().splitlines()
    expected = Counter(int(line.split()[1]) for line in lines)
    assert Counter(names.index(record.class_name) + 1 for record in train) == expected


def test_ucf101_class_comes_from_the_folder_not_the_file_name(real_root: Path) -> None:
    train, _ = UCF101Reader("ucfTrainTestlist_full").read_split(real_root, 1)
    odd = [record for record in train if "HandStandPushups" in record.path]
    assert len(odd) > 50
    assert {record.class_name for record in odd} == {"HandstandPushups"}
    assert odd[0].group is not None


def test_official_one_percent_list_reads_with_0_based_ids(real_root: Path) -> None:
    reader = UCF101Reader("ucfTrainTestlist_full")
    names = reader.class_names(real_root)
    path = real_root / "ssl_lists" / "ucf101_1per_split1" / "labeled_training.txt"
    records = read_ssl_list(path, names, reader)
    assert len(records) == 101
    assert sorted(record.class_name for record in records) == sorted(names)
    assert all(r.path.split("/")[0].lower() == r.class_name.lower() for r in records)


def test_one_based_ids_in_an_ssl_list_are_found(tmp_path: Path) -> None:
    path = tmp_path / "labeled_training.txt"
    path.write_text("Archery/v_Archery_g01_c01.avi 1 30 1\n")
    with pytest.raises(InputError, match="another class than the 0-based id"):
        read_ssl_list(path, CLASSES, ucf())


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("Archery/a.avi 1 30", "1 lines are not"),
        ("Archery/a.avi one 30 0", "1 lines are not"),
        ("Archery/a.avi 1 30 4", "ids end at 3"),
    ],
)
def test_malformed_ssl_lines_are_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "labeled_training.txt"
    path.write_text(f"Archery/ok name.avi 1 30 0\n\n{line}\n")
    with pytest.raises(InputError, match=complaint) as error:
        read_ssl_list(path, CLASSES, ucf())
    assert "line 3" in str(error.value)


def test_the_ucf101_root_may_be_the_video_folder_itself(ucf_root: Path) -> None:
    assert ucf().read_split(ucf_root, 1) == ucf().read_split(ucf_root / "UCF-101", 1)
    assert ucf().videos_folder(ucf_root / "UCF-101") == ucf_root / "UCF-101"


def test_a_foreign_folder_says_what_ucf101_looks_like(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"crcv\.ucf\.edu.*UCF-101/<Class>"):
        ucf().class_names(tmp_path)


def test_a_class_that_classind_does_not_know_is_named(ucf_root: Path) -> None:
    path = ucf_root / "ucfTrainTestlist" / "testlist01.txt"
    path.write_text(path.read_text() + "Bikng/v_Bikng_g01_c01.avi\n")
    with pytest.raises(InputError, match=r"1 clips of 1 unknown classes \(Bikng\).*did you mean Biking"):
        ucf().read_split(ucf_root, 1)


def test_a_wrong_1_based_id_in_the_train_list_is_named(ucf_root: Path) -> None:
    path = ucf_root / "ucfTrainTestlist" / "trainlist01.txt"
    path.write_text(path.read_text().replace("g01_c01.avi 2", "g01_c01.avi 1"))
    with pytest.raises(InputError, match=r"1 lines are not .*1-based.*v_Biking_g01_c01\.avi 1"):
        ucf().read_split(ucf_root, 1)


@pytest.mark.parametrize("content", [None, "", "\n\n"])
def test_a_missing_or_empty_list_is_named(ucf_root: Path, content: str | None) -> None:
    path = ucf_root / "ucfTrainTestlist" / "trainlist01.txt"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError, match=r"trainlist01\.txt is (missing|empty)"):
        ucf().read_split(ucf_root, 1)


def test_hmdb51_split_files_give_train_and_test(tmp_path: Path) -> None:
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    (lists / "wave_test_split1.txt").write_text("a.avi 1 \nb (1).avi 2 \nc.avi 0 \n")
    (lists / "cartwheel_test_split1.txt").write_text("d.avi 2 \ne.avi 1 \n")
    (lists / "cartwheel_test_split2.txt").write_text("d.avi 1 \ne.avi 2 \n")
    reader = HMDB51Reader("testTrainMulti_7030_splits")
    assert reader.class_names(tmp_path) == ["cartwheel", "wave"]
    train, test = reader.read_split(tmp_path, 1)
    assert [r.path for r in train] == ["cartwheel/e.avi", "wave/a.avi"]
    assert [r.path for r in test] == ["cartwheel/d.avi", "wave/b (1).avi"]
    assert [r.class_name for r in test] == ["cartwheel", "wave"]
    with pytest.raises(InputError, match=r"no <class>_test_split3\.txt"):
        reader.read_split(tmp_path, 3)
    (lists / "wave_test_split1.txt").write_text("a.avi 3\n")
    with pytest.raises(InputError, match=r"wave_test_split1\.txt line 1 'a\.avi 3'"):
        reader.read_split(tmp_path, 1)


@pytest.mark.parametrize("folder", ["", "annotations"])
@pytest.mark.parametrize("underscores", [False, True])
def test_kinetics400_csv_files_give_the_official_file_names(tmp_path: Path, folder: str, underscores: bool) -> None:
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    (tmp_path / folder).mkdir(exist_ok=True)
    train = tmp_path / folder / "train.csv"
    train.write_text(header + "air drumming,_-k_8,7,17,train,0\nabseiling,x_1,120,130,train,0\n")
    (tmp_path / folder / "val.csv").write_text(header + "abseiling,0wR,9,19,val,0\n")
    name = "air_drumming" if underscores else "air drumming"
    (tmp_path / "train" / name).mkdir(parents=True)
    reader = Kinetics400Reader("annotations")
    assert reader.class_names(tmp_path) == ["abseiling", "air drumming"]
    records, test = reader.read_split(tmp_path, 1)
    path = f"train/{name}/_-k_8_000007_000017.mp4"
    assert records[0] == ClipRecord(path, "air drumming", "_-k_8")
    assert reader.group(path) == "_-k_8"
    assert [record.path for record in test] == ["val/abseiling/0wR_000009_000019.mp4"]
    with pytest.raises(InputError, match=r"data\.split=1, not 2"):
        reader.read_split(tmp_path, 2)
    train.write_text(header + "abseiling,x,seven,17,train,0\n")
    with pytest.raises(InputError, match="1 lines have no label or no whole seconds: line 2"):
        reader.read_split(tmp_path, 1)


def clips_of(sizes: dict[str, int]) -> list[ClipRecord]:
    return [ClipRecord(f"{name}/{i:03d}.avi", name) for name, n in sizes.items() for i in range(n)]


def test_labels_are_drawn_class_by_class_and_only_by_seed_and_class() -> None:
    train = clips_of({"a": 30, "b": 20})
    drawn = draw_labeled(train, 3, None, seed=5)
    assert Counter(record.class_name for record in drawn) == {"a": 3, "b": 3}
    assert draw_labeled(train[::-1], 3, None, seed=5) == drawn
    assert draw_labeled(train, 3, None, seed=6) != drawn
    alone = draw_labeled(clips_of({"b": 20}), 3, None, seed=5)
    assert alone == [record for record in drawn if record.class_name == "b"]


@pytest.mark.parametrize(("fraction", "expected"), [(0.01, 1), (0.1, 9), (0.4, 38), (1.0, 94)])
def test_a_labelled_share_is_the_nearest_whole_number_and_at_least_one(fraction: float, expected: int) -> None:
    assert len(draw_labeled(clips_of({"a": 94}), None, fraction, seed=0)) == expected


@pytest.mark.parametrize(
    ("per_class", "fraction", "complaint"),
    [
        (None, None, "exactly one of"),
        (1, 0.1, "exactly one of"),
        (None, 0.0, "labeled_fraction=0.0 must be above 0"),
        (None, 1.5, "labeled_fraction=1.5 must be"),
        (0, None, "labeled_per_class=0 must be at least 1"),
        (3, None, r"labeled_per_class=3 is more than 1 classes have .*b \(2\)"),
    ],
)
def test_impossible_label_draws_are_refused(per_class: int | None, fraction: float | None, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        draw_labeled(clips_of({"a": 5, "b": 2}), per_class, fraction, seed=0)
