"""The semi-supervised video datamodule: what its batches hold, and what it refuses."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.sampling import Draw
from datamodules.video_ssl import VideoSSLDataModule
from runs.errors import InputError
from tests.datamodules.tiny_videos import write_audio, write_avi

Build = Callable[..., VideoSSLDataModule]


def batches(datamodule: VideoSSLDataModule) -> Iterator[Any]:
    datamodule.prepare_data()
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    return ((item[0] if datamodule.unlabeled else item) for item in loader)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)


def frame_levels(video: Tensor) -> Tensor:
    """Which frame each one is, from its grey level (see ``write_avi``)."""
    return ((video.float().mean((-3, -2, -1)) - 12) / 5).round().long()


# -- batches ------------------------------------------------------------------------------------


def test_training_batches_have_the_documented_fields_and_shapes(ucf_root: Path, build: Build) -> None:
    (batch, *_) = batches(build(ucf_root))
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    assert labeled["video"].shape == (2, 8, 3, 16, 16)
    assert unlabeled["video_fast"].shape == (4, 8, 3, 16, 16)
    assert unlabeled["video_slow"].shape == (4, 4, 3, 24, 24)
    for part in (labeled, unlabeled):
        assert part["label"].dtype == part["index"].dtype == torch.int64
    for video in (labeled["video"], unlabeled["video_fast"], unlabeled["video_slow"]):
        assert video.dtype == torch.uint8
    (supervised, *_) = batches(build(ucf_root, unlabeled=False))
    assert same(supervised, labeled)


def test_evaluation_and_prediction_batches_have_the_documented_fields(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root, num_eval_clips=3, predict_root=str(ucf_root / "UCF-101"))
    datamodule.setup("test")
    (batch,) = datamodule.test_dataloader()
    assert batch["video"].shape == (2, 3, 8, 3, 16, 16)
    assert batch["label"].tolist() == [0, 1]
    datamodule.setup("predict")
    predicted = list(datamodule.predict_dataloader())
    names = [name for batch in predicted for name in batch["name"]]
    assert names == sorted(
        path.relative_to(ucf_root / "UCF-101").as_posix() for path in (ucf_root / "UCF-101").rglob("*.avi")
    )
    assert "label" not in predicted[0]
    assert [i for batch in predicted for i in batch["index"].tolist()] == list(range(8))


def test_labels_follow_the_official_order_of_the_classes_present(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root)
    datamodule.setup("fit")
    assert datamodule.class_names == ["Biking", "HandstandPushups"]
    for clip in datamodule.train_dataloader().flattened[0].dataset.clips:
        assert datamodule.class_names[clip.label] == clip.path.parent.name


def test_the_slow_view_is_every_second_fast_frame_of_the_same_crop(real_root: Path, build: Build) -> None:
    datamodule = build(
        real_root,
        lists="ssl_lists/subset12_1shot_split1",
        num_classes=12,
        cell_fast=64,
        cell_slow=64,
        on_missing="error",
    )
    datamodule.setup("fit")
    dataset = datamodule.train_dataloader().flattened[1].dataset
    for number in range(6):
        sample = dataset[Draw(number % len(dataset), number)]
        assert torch.equal(sample["video_slow"], sample["video_fast"][0::2])


def test_two_cell_sizes_show_the_same_crop(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root, cell_fast=24, cell_slow=48)
    datamodule.setup("fit")
    dataset = datamodule.train_dataloader().flattened[1].dataset
    for number in range(12):
        sample = dataset[Draw(number % len(dataset), number)]
        halved = torch.nn.functional.avg_pool2d(sample["video_slow"].float(), 2)
        assert (halved - sample["video_fast"][0::2].float()).abs().max() <= 2


def test_independent_slow_sampling_draws_other_frames_of_the_same_crop(ucf_root: Path, build: Build) -> None:
    differs = 0
    for mode in ("subsample", "independent"):
        datamodule = build(ucf_root, slow_sampling=mode, cell_slow=16)
        datamodule.setup("fit")
        dataset = datamodule.train_dataloader().flattened[1].dataset
        samples = [dataset[Draw(0, number)] for number in range(10)]
        for sample in samples:
            fast, slow = frame_levels(sample["video_fast"]), frame_levels(sample["video_slow"])
            assert torch.equal(slow, slow.sort().values)
            differs += int(mode == "independent" and not torch.equal(slow, fast[0::2]))
            assert mode == "independent" or torch.equal(slow, fast[0::2])
    assert differs > 3


class StillSource:
    """Instead of a file: one picture, dark on its left half, repeated."""

    def __init__(self) -> None:
        picture = torch.randint(0, 100, (3, 48, 64), dtype=torch.uint8)
        picture[..., 32:] += 150
        self.picture = picture

    def read(self, path: Path, choose: Callable[[int], np.ndarray]) -> Tensor:
        return self.picture.expand(len(choose(30)), -1, -1, -1)


def test_one_crop_and_one_flip_serve_all_frames_of_a_clip(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root, unlabeled=False)
    datamodule.setup("fit")
    dataset = datamodule.train_dataloader().dataset
    dataset.source = StillSource()
    videos = [dataset[Draw(0, number)]["video"] for number in range(30)]
    for video in videos:
        assert torch.equal(video, video[:1].expand_as(video))
    assert len({str(video[0].tolist()) for video in videos}) > 20
    mirrored = [bool(video[..., 0].float().mean() > video[..., -1].float().mean()) for video in videos]
    assert set(mirrored) == {False, True}


def test_the_single_frame_control_repeats_the_middle_frame(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root, single_frame=True)
    (batch, *_) = batches(datamodule)
    for video in (batch["unlabeled"]["video_fast"], batch["unlabeled"]["video_slow"]):
        assert torch.equal(video, video[:, :1].expand_as(video))
    (tested,) = datamodule.test_dataloader()
    # test clips have 12 frames
    assert frame_levels(tested["video"]).unique().tolist() == [6]


def test_evaluation_takes_segment_centres_and_spreads_several_views(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root, frames_fast=4, num_eval_clips=3)
    datamodule.setup("test")
    (batch,) = datamodule.test_dataloader()
    levels = frame_levels(batch["video"])[0]
    assert levels.tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_batches_do_not_depend_on_worker_processes(ucf_root: Path, build: Build, cache: str) -> None:
    alone = list(batches(build(ucf_root, cache=cache)))
    helped = list(batches(build(ucf_root, cache=cache, num_workers=2)))
    assert len(alone) == len(helped) > 0
    assert all(same(a, b) for a, b in zip(alone, helped, strict=True))


def test_batches_depend_on_the_seed(ucf_root: Path, build: Build) -> None:
    first, again, other = (list(batches(build(ucf_root, seed=seed, unlabeled=False))) for seed in (1, 1, 2))
    assert same(first[0], again[0])
    assert not torch.equal(first[0]["video"], other[0]["video"])


def test_an_epoch_is_as_long_as_the_longer_list(ucf_root: Path, build: Build) -> None:
    # 2 labelled and 4 unlabelled clips
    for mu, batch_size, expected in ((1, 1, 4), (2, 2, 1), (4, 1, 2)):
        assert len(list(batches(build(ucf_root, mu=mu, batch_size=batch_size)))) == expected


# -- the label split ----------------------------------------------------------------------------


def test_the_unlabelled_pool_is_train_minus_labelled(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root)
    datamodule.setup("fit")
    state = datamodule.state_dict()
    assert not set(state["labeled"]) & set(state["unlabeled"])
    assert len(state["labeled"]) == 2
    assert len(state["unlabeled"]) == 4
    both = build(ucf_root, unlabeled_includes_labeled=True)
    both.setup("fit")
    assert set(both.state_dict()["unlabeled"]) == {*state["labeled"], *state["unlabeled"]}


def test_ids_are_stable_whatever_is_labelled(ucf_root: Path, build: Build) -> None:
    ids = []
    for label_seed in range(3):
        datamodule = build(ucf_root, label_seed=label_seed)
        datamodule.setup("fit")
        loaders = [*datamodule.train_dataloader().flattened, datamodule.val_dataloader()]
        ids.append({c.name: c.index for loader in loaders for c in loader.dataset.clips})
    assert ids[0] == ids[1] == ids[2]
    assert sorted(ids[0].values()) == list(range(8))


def test_ssl_lists_of_the_real_sample_are_taken_as_they_are(real_root: Path, build: Build) -> None:
    datamodule = build(real_root, lists=str(real_root / "ssl_lists/subset12_1shot_split1"), num_classes=12)
    datamodule.setup("fit")
    assert (len(datamodule.class_names), datamodule.class_names[:2]) == (
        12,
        ["Biking", "BlowDryHair"],
    )
    state = datamodule.state_dict()
    folder = real_root / "ssl_lists" / "subset12_1shot_split1"
    for name in ("labeled", "unlabeled"):
        lines = (folder / f"{name}_training.txt").read_text().splitlines()
        assert state[name] == [line.split()[0] for line in lines]
    assert len(datamodule.val_dataloader().dataset) == 14


def test_absent_ssl_lists_are_filled_from_the_official_split(ucf_root: Path, build: Build, tmp_path: Path) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "labeled_training.txt").write_text(
        "Biking/v_Biking_g02_c01.avi 1 10 1\nHandstandPushups/v_HandStandPushups_g03_c01.avi 1 11 3\n"
    )
    datamodule = build(ucf_root, lists=str(lists))
    datamodule.setup("fit")
    assert len(datamodule.state_dict()["unlabeled"]) == 4
    assert len(datamodule.val_dataloader().dataset) == 2


def test_the_split_travels_in_checkpoints_as_plain_values(ucf_root: Path, build: Build, tmp_path: Path) -> None:
    trained = build(ucf_root, label_seed=1)
    trained.setup("fit")
    torch.save(trained.state_dict(), tmp_path / "state.ckpt")
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)
    for before_setup in (True, False):
        resumed = build(ucf_root, label_seed=2)
        if before_setup:
            resumed.load_state_dict(state)
        resumed.setup("fit")
        if not before_setup:
            assert resumed.state_dict() != state
            resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        clips = resumed.train_dataloader().flattened[0].dataset.clips
        assert [clip.name for clip in clips] == state["labeled"]


def test_other_data_are_judged_with_the_labels_of_the_checkpoint(ucf_root: Path, build: Build) -> None:
    trained = build(ucf_root)
    trained.setup("fit")
    lists = ucf_root / "ucfTrainTestlist"
    for name in ("trainlist01", "testlist01"):
        lines = (lists / f"{name}.txt").read_text().splitlines()
        (lists / f"{name}.txt").write_text("\n".join(x for x in lines if "Hand" in x) + "\n")
    judged = build(ucf_root)
    judged.load_state_dict(trained.state_dict())
    judged.setup("test")
    (batch,) = judged.test_dataloader()
    assert batch["label"].tolist() == [1]
    stranger = build(ucf_root)
    stranger.load_state_dict(trained.state_dict() | {"class_names": ["Biking", "Diving"]})
    with pytest.raises(InputError, match="1 classes that the checkpoint does not know: Handstand"):
        stranger.setup("test")


def test_prediction_needs_no_training_data(ucf_root: Path, build: Build, tmp_path: Path) -> None:
    write_avi(tmp_path / "mine" / "deep" / "holiday.AVI", 9)
    datamodule = build(None, predict_root=str(tmp_path / "mine"))
    datamodule.load_state_dict({"class_names": ["a", "b"], "labeled": [], "unlabeled": []})
    datamodule.prepare_data()
    datamodule.setup("predict")
    (batch,) = datamodule.predict_dataloader()
    assert batch["name"] == ["deep/holiday.AVI"]
    assert datamodule.class_names == ["a", "b"]


# -- bad input ----------------------------------------------------------------------------------


def spoil(root: Path, kind: str) -> None:
    """Puts one fault into the tiny tree."""
    clip = root / "UCF-101" / "Biking" / "v_Biking_g02_c01.avi"
    lists = root / "ucfTrainTestlist"
    if kind == "missing":
        clip.unlink()
    elif kind == "text":
        clip.write_text("no pictures")
    elif kind == "audio":
        clip.unlink()
        write_audio(clip)
    elif kind == "cut off":
        content = write_avi(clip, 40).read_bytes()
        clip.write_bytes(content[: len(content) // 3 * 2])
    elif kind == "in both lists":
        with (lists / "testlist01.txt").open("a") as stream:
            stream.write("Biking/v_Biking_g02_c01.avi\n")
    elif kind == "unknown class":
        with (lists / "testlist01.txt").open("a") as stream:
            stream.write("Juggling/v_Juggling_g01_c01.avi\n")
    elif kind == "class without training clips":
        with (lists / "testlist01.txt").open("a") as stream:
            stream.write("Diving/v_Diving_g01_c01.avi\n")
        write_avi(root / "UCF-101" / "Diving" / "v_Diving_g01_c01.avi", 9)


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("missing", r"1 of 8 listed videos are missing .*v_Biking_g02_c01\.avi"),
        ("text", r"1 of 8 .* cannot be read: .*g02_c01\.avi \(it is not a video file\)"),
        ("audio", r"g02_c01\.avi \(it holds no video stream\)"),
        ("cut off", r"g02_c01\.avi \(it is truncated, \d+ of 40 frames are left\)"),
        ("in both lists", r"1 clips are in both .*v_Biking_g02_c01\.avi"),
        ("unknown class", r"1 unknown classes \(Juggling\)"),
        ("class without training clips", r"1 of 3 classes have no labelled clip: Diving"),
    ],
)
def test_bad_files_and_lists_are_found_at_setup(ucf_root: Path, build: Build, kind: str, complaint: str) -> None:
    spoil(ucf_root, kind)
    with pytest.raises(InputError, match=complaint):
        build(ucf_root, num_classes=3 if "class" in kind else 2).setup("fit")


@pytest.mark.parametrize("kind", ["missing", "text", "audio", "cut off"])
def test_skipping_goes_on_without_the_bad_file(ucf_root: Path, build: Build, kind: str) -> None:
    spoil(ucf_root, kind)
    datamodule = build(ucf_root, on_missing="skip")
    with pytest.warns(UserWarning, match=r"1 of 8 .*g02_c01\.avi.*they are skipped"):
        datamodule.setup("fit")
    loaders = datamodule.train_dataloader().flattened
    assert sum(len(loader.dataset) for loader in loaders) == 5


def test_skipping_everything_of_a_class_or_of_all_is_refused(ucf_root: Path, build: Build) -> None:
    for path in (ucf_root / "UCF-101" / "Biking").glob("*_g0[123]_*"):
        path.unlink()
    with pytest.warns(UserWarning), pytest.raises(InputError, match="no labelled clip: Biking"):
        build(ucf_root, on_missing="skip").setup("fit")
    for path in ucf_root.rglob("*.avi"):
        path.unlink()
    with pytest.warns(UserWarning), pytest.raises(InputError, match="none of the 8 listed"):
        build(ucf_root, on_missing="skip").setup("fit")


def test_many_offenders_are_counted_and_five_named(ucf_root: Path, build: Build) -> None:
    for path in ucf_root.rglob("*.avi"):
        path.unlink()
    with pytest.raises(InputError, match=r"8 of 8 .* and 3 more") as error:
        build(ucf_root).setup("fit")
    assert str(error.value).count(".avi") == 5
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("root", "complaint"),
    [(None, "data.root is not set"), ("absent", "is no folder"), ("empty", "is empty")],
)
def test_a_wrong_root_says_where_to_get_the_data(
    tmp_path: Path, build: Build, root: str | None, complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"{complaint}: get UCF101\.rar .*ucfTrainTestlist"):
        build(None if root is None else tmp_path / root).setup("fit")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_classes": 101}, r"lists hold 2 classes .* set data\.num_classes=2"),
        ({"labeled_per_class": None, "labeled_fraction": 0.0}, "labeled_fraction=0.0 must"),
        ({"labeled_per_class": 3}, "no unlabelled clips left"),
        ({"labeled_per_class": 4}, "labeled_per_class=4 is more than 2 classes"),
        ({"lists": "nowhere"}, "data.lists=nowhere is neither 'official' nor a folder"),
        ({"split": 2}, r"trainlist02\.txt is missing"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    ucf_root: Path, build: Build, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        build(ucf_root, **changes).setup("fit")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"frames_slow": 3}, "data.frames_fast=8 must be a multiple of data.frames_slow=3"),
        ({"frames_fast": 0}, "must be at least 1"),
        ({"mu": 0}, "must be 1 or more"),
        ({"crop_scales": [1.2]}, "crop_scales"),
        ({"crop_scales": []}, "crop_scales"),
        ({"flip": 2.0}, "data.flip=2.0 must be a probability"),
    ],
)
def test_impossible_settings_are_refused_at_once(
    ucf_root: Path, build: Build, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        build(ucf_root, **changes)


def test_prediction_names_what_is_wrong_with_the_users_folder(build: Build, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for predict_root, complaint in (
        (None, "data.predict_root is not set"),
        (mine, "is no folder"),
    ):
        with pytest.raises(InputError, match=complaint):
            build(None, predict_root=predict_root and str(predict_root)).setup("predict")
    mine.mkdir()
    (mine / "notes.txt").write_text("no video")
    with pytest.raises(InputError, match="holds no video"):
        build(None, predict_root=str(mine)).setup("predict")
    (mine / "broken.mp4").write_text("no video")
    write_avi(mine / "good.avi", 9)
    with pytest.raises(InputError, match=r"1 of 2 videos .*broken\.mp4 \(it is not a video file"):
        build(None, predict_root=str(mine)).setup("predict")
    skipping = build(None, predict_root=str(mine), on_missing="skip")
    with pytest.warns(UserWarning, match="they are skipped"):
        skipping.setup("predict")
    assert len(skipping.predict_dataloader().dataset) == 1


def test_a_file_spoilt_after_setup_is_an_input_error_from_workers_too(ucf_root: Path, build: Build) -> None:
    datamodule = build(ucf_root, unlabeled=False, num_workers=1)
    datamodule.setup("fit")
    for path in ucf_root.rglob("*.avi"):
        path.write_text("no pictures")
    with pytest.raises(InputError, match="cannot be read as a video"):
        next(iter(datamodule.train_dataloader()))


def test_a_recording_in_train_and_test_is_warned_of(ucf_root: Path, build: Build) -> None:
    name = "Biking/v_Biking_g01_c02.avi"
    write_avi(ucf_root / "UCF-101" / name, 9)
    with (ucf_root / "ucfTrainTestlist" / "testlist01.txt").open("a") as stream:
        stream.write(f"{name}\n")
    with pytest.warns(UserWarning, match=r"1 recordings .*\(Biking g01\)"):
        build(ucf_root).setup("fit")


def test_a_sound_tree_warns_of_nothing(ucf_root: Path, build: Build) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(ucf_root).setup("fit")


def test_a_header_that_promises_one_frame_more_is_only_warned_of(ucf_root: Path, build: Build) -> None:
    path = ucf_root / "UCF-101" / "Biking" / "v_Biking_g02_c01.avi"
    content = bytearray(write_avi(path, 30).read_bytes())
    place = content.index(b"strh") + 40
    assert int.from_bytes(content[place : place + 4], "little") == 30
    content[place : place + 4] = np.uint32(31).tobytes()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="header states 31 frames but the file holds 30"):
        build(ucf_root).setup("fit")


def test_samples_of_either_part_of_a_batch_are_named_by_their_files(ucf_root, build):
    data = build(ucf_root)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))[0]
    for part in ("labeled", "unlabeled"):
        names = data.sample_names(part, batch[part]["index"].tolist())
        classes = [data.class_names[label] for label in batch[part]["label"]]
        assert [name.partition("/")[0] for name in names] == classes
