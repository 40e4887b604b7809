"""The generated clips: real files, one frame says nothing, the order of frames says all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodules import shapes_video
from datamodules.shapes_video import MOTIONS, ShapesVideo, ShapesVideoReader
from datamodules.video_files import count_frames, read_frames
from datamodules.video_ssl import VideoSSLDataModule
from runs.errors import InputError

LISTS = "ucfTrainTestlist"
CONFIG = Path(__file__).parents[2] / "conf" / "data" / "shapes_video.yaml"


def configured() -> ShapesVideo:
    """The generator exactly as the demo configures it."""
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["reader"]
    del settings["_target_"]
    return ShapesVideoReader(lists_folder=LISTS, **settings).shapes


def small() -> ShapesVideo:
    return replace(configured(), train_per_class=2, test_per_class=1)


def shape_cover(frames: np.ndarray) -> np.ndarray:
    """Where the bright shape is, (F, h, w), found without knowing how it was drawn."""
    return frames.mean(-1) > 130


def motion_by_rule(frames: np.ndarray) -> str:
    """The motion from the change of the shape's place and size, by wrapped differences."""
    cover = shape_cover(frames)
    area = cover.sum((1, 2)).astype(float)
    side = frames.shape[1]
    angle = np.exp(2j * np.pi * np.arange(side) / side)
    across = np.angle((cover.sum(1) * angle).sum(1))
    down = np.angle((cover.sum(2) * angle).sum(1))
    moved = [np.median(np.angle(np.exp(1j * np.diff(place)))) for place in (across, down)]
    grown = np.median(area[6:] - area[:-6])
    if max(map(abs, moved)) > 0.02:
        horizontal = abs(moved[0]) > abs(moved[1])
        step = moved[0] if horizontal else moved[1]
        return (("Left", "Right") if horizontal else ("Up", "Down"))[int(step > 0)]
    return "Grow" if grown > 0 else "Shrink"


@pytest.fixture(scope="module")
def clips() -> list[tuple[str, np.ndarray]]:
    shapes = configured()
    return [(motion, shapes.clip(motion, number)) for motion in MOTIONS for number in range(24)]


def test_the_motion_can_be_told_from_a_whole_clip(clips: list[tuple[str, np.ndarray]]) -> None:
    right = [motion_by_rule(frames) == motion for motion, frames in clips]
    assert np.mean(right) >= 0.97


def test_the_motion_cannot_be_told_from_the_middle_frame(
    clips: list[tuple[str, np.ndarray]],
) -> None:
    labels = [motion for motion, _ in clips]
    middles = [frames[len(frames) // 2] for _, frames in clips]
    blocks = np.stack([m.reshape(8, 8, 8, 8, 3).mean((1, 3)).ravel() for m in middles])
    covers = [shape_cover(middle[None])[0] for middle in middles]
    place_and_size = np.stack([[*(np.argwhere(c).mean(0) if c.any() else (0, 0)), c.sum()] for c in covers])
    for features in (blocks, place_and_size):
        for classifier in (
            KNeighborsClassifier(1),
            make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
        ):
            score = cross_val_score(classifier, features, labels, cv=6).mean()
            # Chance is 1/6; 144 clips leave a standard error of 0.03.
            assert score < 1 / 6 + 0.1


def test_the_play_rate_varies(clips: list[tuple[str, np.ndarray]]) -> None:
    lengths = [len(frames) for _, frames in clips]
    assert (min(lengths), max(lengths)) == (24, 48)


def test_equal_parameters_give_equal_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, shapes in (("a", small()), ("b", small()), ("c", replace(small(), seed=1))):
        shapes.write(tmp_path / name, LISTS)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.avi"))
    assert len(files) == 18
    contents = {n: [(tmp_path / n / f).read_bytes() for f in files] for n in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]


def test_the_files_hold_the_generated_frames(tmp_path: Path) -> None:
    shapes = small()
    shapes.write(tmp_path / "shapes", LISTS)
    path = tmp_path / "shapes" / "UCF-101" / "Grow" / "v_Grow_g02_c01.avi"
    drawn = shapes.clip("Grow", 1)
    assert count_frames(path) == len(drawn)
    read = read_frames(path, np.arange(len(drawn))).permute(0, 2, 3, 1).numpy()
    assert np.abs(read.astype(int) - drawn).mean() < 6


def test_clips_are_generated_once_and_anew_when_the_parameters_change(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    small().write(root, LISTS)
    before = (root / "shapes_video.json").stat()
    small().write(root, LISTS)
    assert (root / "shapes_video.json").stat().st_mtime_ns == before.st_mtime_ns
    replace(small(), train_per_class=1).write(root, LISTS)
    assert len(list(root.rglob("*.avi"))) == 12
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_a_generation_broken_off_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "shapes"
    small().write(root, LISTS)
    before = sorted(root.rglob("*"))
    write_avi, written = shapes_video._write_avi, []

    def disk_full_at_the_fifth(path: Path, frames: np.ndarray) -> None:
        written.append(path)
        if len(written) == 5:
            raise OSError("No space left on device")
        write_avi(path, frames)

    monkeypatch.setattr(shapes_video, "_write_avi", disk_full_at_the_fifth)
    with pytest.raises(OSError, match="No space"):
        replace(small(), seed=9).write(root, LISTS)
    assert sorted(root.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds something else"):
        small().write(tmp_path, LISTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_demo_reads_its_files_through_the_ucf101_reader(
    tmp_path: Path, build: Callable[..., VideoSSLDataModule]
) -> None:
    settings = yaml.safe_load(CONFIG.read_text())["reader"] | {"train_per_class": 3, "test_per_class": 10}
    del settings["_target_"]
    reader = ShapesVideoReader(lists_folder=LISTS, **settings)
    datamodule = build(tmp_path / "shapes", reader=reader, num_classes=6)
    datamodule.prepare_data()
    datamodule.setup("fit")
    assert datamodule.class_names == list(MOTIONS)
    sizes = [len(loader.dataset) for loader in datamodule.train_dataloader().flattened]
    assert sizes == [6, 12]
    assert len(datamodule.val_dataloader().dataset) == 60


def test_ranges_of_the_generator_must_be_least_and_most() -> None:
    settings = yaml.safe_load(CONFIG.read_text())["reader"] | {"frames": [48, 24]}
    del settings["_target_"]
    with pytest.raises(InputError, match=r"data\.reader\.frames=\[48, 24\] must be \[least, most"):
        ShapesVideoReader(lists_folder=LISTS, **settings)
