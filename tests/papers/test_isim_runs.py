"""ISIM's experiments run whole: rounds, resumed, judged again, predicting, in two processes."""

import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from components.voc import PALETTE
from lightning_modules.isim import IsimModule
from runs.errors import InputError
from runs.round_store import RoundStore
from tests.toy.running import judge_here, run_door, start_door, train_here

QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false"]
SMALL_DEMO = [
    *QUIET,
    "experiment=isim_demo",
    "only_stages=[isim]",
    "data.reader.train=16",
    "data.reader.val=4",
    "data.batch_size=8",
    "trainer.max_epochs=4",
    "callbacks.pseudo_label_refresh.schedule.first_at=1",
    "callbacks.pseudo_label_refresh.schedule.every_n_epochs=2",
    "crf.steps=2",
]
UNDRAWN = "callbacks.figures=null"  # drawing a round takes longer than making it at this size


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "isim" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def masks(run_dir: Path, number: int) -> np.ndarray:
    return RoundStore(run_dir / "isim" / "rounds" / "pseudo_label_refresh", keep=2).read(number)["mask"].stacked


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("isim")
    result = train(root / "run", *SMALL_DEMO, f"paths.data_dir={root}/data")
    return root, result


def test_the_demo_makes_masks_twice_on_real_files_and_shows_them(demo):
    root, result = demo
    assert len(list((root / "data" / "shapes_wsss").rglob("*.jpg"))) == 20
    with (root / "run" / "isim" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    rounds = [row for row in rows if row["pseudo_label_refresh/mask_mean_iou"]]
    assert [int(row["step"]) for row in rounds] == [2, 6]  # after epochs 1 and 3, of 2 batches each
    assert all(float(row["pseudo_label_refresh/masks"]) == 16 for row in rounds)
    before = [row for row in rows if row["train/loss_seg"]]
    assert float(before[0]["train/loss_seg"]) == pytest.approx(np.log(4), rel=1e-5)  # the constant of the warm-up
    assert not before[0]["train/loss_seg_nonempty"] and before[-1]["train/loss_seg_nonempty"]
    figures = {path.name for path in (root / "run" / "isim" / "figures").iterdir()}
    assert {f"pseudo_label_refresh_round_0{n}.png" for n in (1, 2)} <= figures
    assert {"pseudo_label_refresh_mask_mean_iou.png", "test_segmentations.png"} <= figures
    assert set(result["floors"]) >= {"mean_iou", "cam_mean_iou", "cam_crf_mean_iou", "val_cam_mean_iou", "ranking_ap"}
    assert result["floors"]["mean_iou_foreground"] == 0


def test_a_checkpoint_alone_gives_the_same_test_numbers(demo):
    root, result = demo
    judge_here(root / "run" / "isim" / "checkpoints" / "last.ckpt", root / "eval")
    assert json.loads((root / "eval" / "result.json").read_text())["metrics"] == result["metrics"]


def test_predicting_on_a_folder_of_photographs_writes_palette_masks(demo):
    root, _ = demo
    pictures = root / "pictures"
    (pictures / "deep").mkdir(parents=True)
    source = sorted((root / "data" / "shapes_wsss").rglob("*.jpg"))
    shutil.copy(source[0], pictures / "a.jpg")
    with Image.open(source[1]) as picture:
        picture.convert("L").resize((50, 41)).save(pictures / "deep" / "b.png")
    judge_here(
        root / "run" / "isim" / "checkpoints" / "last.ckpt",
        root / "predicted",
        "mode=predict",
        f"data.predict_root={pictures}",
        f"data.root={root}/gone",  # the training data need not be there
        "model.predict_cams=true",
    )
    with (root / "predicted" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a.jpg", "deep/b.png"]
    for row, size in zip(rows, ((64, 64), (50, 41)), strict=True):
        with Image.open(root / "predicted" / row["mask"]) as picture:
            assert picture.mode == "P" and picture.size == size
            assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3)[:21], PALETTE[:21])
            assert np.array(picture).max() <= 3
        for column in ("overlay", "cam"):
            with Image.open(root / "predicted" / row[column]) as picture:
                assert picture.size == size
    assert not (root / "gone").exists()


def test_training_without_the_true_masks_gives_the_same_weights(demo, tmp_path):
    """The leakage test: SegmentationClass is gone, nothing changes but that nothing is scored."""
    root, _ = demo
    shutil.copytree(root / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "shapes_wsss" / "VOCdevkit" / "VOC2012" / "SegmentationClass")
    result = train(tmp_path / "run", *SMALL_DEMO, UNDRAWN, f"paths.data_dir={tmp_path}/data")
    ours, theirs = weights(tmp_path / "run"), weights(root / "run")
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert np.array_equal(masks(tmp_path / "run", 2), masks(root / "run", 2))
    assert set(result["metrics"]) == {"test/ranking_ap"}


class Broken(Exception):
    pass


def break_at(patch, epoch: int) -> None:
    step = IsimModule.training_step

    def broken(self, batch, batch_idx):
        if self.current_epoch == epoch and batch_idx == 1:
            raise Broken
        return step(self, batch, batch_idx)

    patch.setattr(IsimModule, "training_step", broken)


def test_a_run_broken_between_two_rounds_makes_the_same_masks_and_weights(demo, tmp_path):
    root, result = demo
    words = [*SMALL_DEMO, UNDRAWN, f"paths.data_dir={root}/data"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 2)
        train(tmp_path / "run", *words)
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    for number in (1, 2):
        assert np.array_equal(masks(tmp_path / "run", number), masks(root / "run", number))
    assert all(torch.equal(value, weights(root / "run")[name]) for name, value in weights(tmp_path / "run").items())


def test_a_run_broken_inside_a_round_makes_it_again(demo, tmp_path):
    root, result = demo
    words = [*SMALL_DEMO, UNDRAWN, f"paths.data_dir={root}/data"]
    maps = IsimModule.activation_maps

    def broken(self, image):
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked == 16 + 9:  # in the second round
            raise Broken
        return maps(self, image)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        patch.setattr(IsimModule, "activation_maps", broken)
        train(tmp_path / "run", *words)
    folder = tmp_path / "run" / "isim" / "rounds" / "pseudo_label_refresh"
    assert RoundStore(folder, keep=2).numbers() == [1]
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]


def test_a_run_whose_masks_are_gone_does_not_go_on_with_empty_ones(demo, tmp_path):
    root, _ = demo
    words = [*SMALL_DEMO, UNDRAWN, f"paths.data_dir={root}/data"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 2)
        train(tmp_path / "run", *words)
    shutil.rmtree(tmp_path / "run" / "isim" / "rounds")
    with pytest.raises(InputError, match=r"rounds/pseudo_label_refresh/000001 cannot be used: it is missing"):
        train(tmp_path / "run", *words)


@pytest.mark.parametrize("variant", ["isim_cam", "isim_no_crf", "isim_mask_empty_off", "isim_converge"])
def test_baselines_and_ablations_run(demo, tmp_path, variant):
    root, _ = demo
    words = [*SMALL_DEMO, UNDRAWN, f"paths.data_dir={root}/data", f"variant={variant}", "trainer.max_epochs=2"]
    if variant == "isim_cam":  # has no rounds
        words = [word for word in words if "pseudo_label_refresh" not in word]
    result = train(tmp_path / "run", *words)
    assert result["variant"] == variant.removeprefix("isim_")
    assert ("test/mean_iou" in result["metrics"]) == (variant != "isim_cam")
    assert (tmp_path / "run" / "isim" / "rounds").exists() == (variant != "isim_cam")


@pytest.mark.slow
def test_the_pseudo_masks_of_the_demo_are_better_after_the_last_round_than_after_the_first(tmp_path):
    """What the experiment claims, at its own size."""
    train(tmp_path / "run", *QUIET, "experiment=isim_demo", UNDRAWN, f"paths.data_dir={tmp_path}/data")
    with (tmp_path / "run" / "isim" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = [float(row["pseudo_label_refresh/mask_mean_iou"]) for row in rows if row["pseudo_label_refresh/masks"]]
    assert len(scores) == 2 and scores[-1] > scores[0] + 5  # of 64.5 and 80.2 at the seed of the experiment


@pytest.mark.slow
def test_two_processes_make_the_masks_that_one_makes_from_the_same_weights(demo, tmp_path):
    root, _ = demo
    words = [w for w in SMALL_DEMO if w != "trainer=cpu"] + [f"paths.data_dir={root}/data", "trainer.max_epochs=1"]
    words += ["callbacks.pseudo_label_refresh.schedule.first_at=0", "data.reader.train=17"]
    made = {}
    for trainer in ("cpu", "ddp_cpu"):
        run_dir = tmp_path / trainer
        code, output = run_door("train.py", *words, f"trainer={trainer}", f"hydra.run.dir={run_dir}")
        assert code == 0, output
        made[trainer] = masks(run_dir, 1)
    assert made["cpu"].shape == (17, 64, 64) and made["cpu"].any()
    assert np.array_equal(made["cpu"], made["ddp_cpu"])


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(tmp_path):
    """SIGKILL in the middle of the second round, and between the rounds."""
    words = [*SMALL_DEMO, f"paths.data_dir={tmp_path}/data", "data.reader.train=200", "crf.steps=10"]
    code, output = run_door("train.py", *words, f"hydra.run.dir={tmp_path}/unbroken")
    assert code == 0, output
    expected = json.loads((tmp_path / "unbroken" / "result.json").read_text())["metrics"]
    for name, awaited, pause in (("in_a_round", "000002.partial", 0.2), ("between", "000001/manifest.json", 1.0)):
        run_dir = tmp_path / name
        process = start_door("train.py", *words, f"hydra.run.dir={run_dir}")
        folder = run_dir / "isim" / "rounds" / "pseudo_label_refresh"
        wait_for(folder / awaited)
        time.sleep(pause)
        process.kill()
        process.communicate()
        assert (folder / "000002.partial").exists() == (name == "in_a_round")
        assert not (folder / "000002").exists()
        code, output = run_door("train.py", f"ckpt_path={run_dir}", "trainer.enable_progress_bar=false")
        assert code == 0, output
        assert json.loads((run_dir / "result.json").read_text())["metrics"] == expected
        assert np.array_equal(masks(run_dir, 2), masks(tmp_path / "unbroken", 2))


def wait_for(path: Path, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_real_photographs_train_and_are_judged_alike(sample_data, tmp_path):
    """Four training images of the sample and two others, the grey one among them, at a quarter of their size."""
    source = sample_data / "coco128_voc" / "VOCdevkit" / "VOC2012"
    folder = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    lists = {"train": [], "val": ["000000000086"]}
    for list_name, count in (("train", 4), ("val", 2)):
        names = (source / "ImageSets" / "Segmentation" / f"{list_name}.txt").read_text().split()
        lists[list_name] = [*lists[list_name], *(n for n in names if n not in lists[list_name])][:count]
    for part, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        (folder / part).mkdir(parents=True)
        for name in (*lists["train"], *lists["val"]):
            if suffix == "xml":
                shutil.copy(source / part / f"{name}.xml", folder / part)
                continue
            with Image.open(source / part / f"{name}.{suffix}") as picture:
                small = picture.resize((picture.width // 4, picture.height // 4), Image.Resampling.NEAREST)
                small.save(folder / part / f"{name}.{suffix}")
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    for list_name, names in lists.items():
        (folder / "ImageSets" / "Segmentation" / f"{list_name}.txt").write_text("\n".join(names))
    words = [
        *QUIET,
        "experiment=isim_coco128",
        f"data.root={tmp_path}/voc",
        "trainer.max_epochs=2",
        "data.batch_size=2",
    ]
    words += ["crf.steps=1", "callbacks.pseudo_label_refresh.processes=0", UNDRAWN, "data.crop=64", "cam.scales=[0.5]"]
    result = train(tmp_path / "run", *words, "only_stages=[isim]")
    assert result["paper"]["metrics"] == {"test/cam_mean_iou": 54.89}
    generation = RoundStore(tmp_path / "run" / "isim" / "rounds" / "pseudo_label_refresh", keep=2).read(1)
    for index, name in enumerate(lists["train"]):
        with Image.open(folder / "JPEGImages" / f"{name}.jpg") as picture:
            assert generation["mask"][index].shape == (picture.height, picture.width)
    judge_here(tmp_path / "run" / "isim" / "checkpoints" / "last.ckpt", tmp_path / "eval")
    assert json.loads((tmp_path / "eval" / "result.json").read_text())["metrics"] == result["metrics"]


def test_a_missing_folder_is_answered_before_weights_are_looked_for(tmp_path):
    with pytest.raises(InputError, match="gone is no folder: it must hold VOCdevkit/VOC2012"):
        train_here(tmp_path / "run", *QUIET, "experiment=isim_voc12", f"data.root={tmp_path}/gone")
