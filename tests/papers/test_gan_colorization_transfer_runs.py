"""Both downstream tasks run whole: phases, resumed, judged again, predicting, arms in one table."""

import csv
import json
import shutil
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from components.metrics.segmentation import mean_iou
from components.voc import PALETTE
from lightning_modules.gan_colorization import ClassifierModule, Generator, SegmenterModule
from runs.building import build
from runs.composition import compose_config
from runs.errors import InputError
from runs.reporting import group_results, read_results, rows_of
from runs.stages import Stage, let_command_line_win, resolve_stage
from tests.datamodules.test_voc_transfer import write_voc
from tests.toy.running import judge_here, run_door, start_door, train_here

QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false", "trainer.check_val_every_n_epoch=2"]
SMALL = [
    *QUIET,
    "experiment=gan_colorization_voc",
    "pixels=32",
    "unet.width=4",
    "unet.depth=5",
    "classifier_units=16",
    "data.num_classes=3",
    "data.class_names=[bird,cat,dog]",
    "data.num_workers=0",
    "data.batch_size=8",
    "callbacks.figures=null",
    "pace.classification={frozen: 2, free: 3, all: 5}",
    "pace.segmentation={frozen: 2, free: 3, all: 5}",
]
TASKS = {"classification": ClassifierModule, "segmentation": SegmenterModule}


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def checkpoint_of(run_dir: Path, stage: str) -> Path:
    return run_dir / stage / "checkpoints" / "last.ckpt"


def carried(run_dir: Path, stage: str) -> dict:
    return torch.load(checkpoint_of(run_dir, stage), weights_only=True)


class Whole(NamedTuple):
    """A finished run of both tasks, its words, and the colouriser that it started from."""

    root: Path
    words: list[str]
    result: dict
    colouriser: dict[str, torch.Tensor]
    losses: dict[tuple[str, int, int], float]  # of each step of the second phases


@contextmanager
def watched_steps(broken_at: tuple[int, int] | None = None):
    """The loss of each step of the second phases, by task, epoch and batch; an exception before one of them."""
    losses: dict[tuple[str, int, int], float] = {}
    with pytest.MonkeyPatch.context() as patch:
        for task, module in TASKS.items():

            def step(self, batch, batch_idx, task=task, unwatched=module.training_step):
                place = (self.current_epoch, batch_idx)
                if not self.network.e1.conv.weight.requires_grad:
                    return unwatched(self, batch, batch_idx)
                if place == broken_at:
                    raise Broken
                loss = unwatched(self, batch, batch_idx)
                losses[(task, *place)] = float(loss.detach())
                return loss

            patch.setattr(module, "training_step", step)
        yield losses


class Broken(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Photographs in VOC's layout, a colouriser's checkpoint, and a run of both tasks from it."""
    root = tmp_path_factory.mktemp("transfer")
    write_voc(root / "voc")
    torch.manual_seed(3)
    generator = Generator(width=4, depth=5, dropout=0.5, dropout_in_evaluation=True, norm_eval="batch")
    state = {f"generator.{name}": value for name, value in generator.state_dict().items()}
    torch.save({"state_dict": state}, root / "pretext.ckpt")
    words = [*SMALL, f"data.root={root}/voc", f"pretext={root}/pretext.ckpt"]
    with watched_steps() as losses:
        result = train(root / "run", *words)
    return Whole(root, words, result, generator.state_dict(), losses)


@pytest.mark.parametrize("task", TASKS)
def test_phase_1_leaves_what_was_transferred_bit_identical_and_phase_2_changes_all(whole, task):
    root, colouriser = whole.root, whole.colouriser
    frozen, free = (carried(root / "run", stage) for stage in (f"{task}_frozen", task))
    names = [name for name in frozen["state_dict"] if name.startswith("network.") and name.endswith(("weight", "bias"))]
    for name in names:
        after_1, after_2 = frozen["state_dict"][name], free["state_dict"][name]
        layer = name.removeprefix("network.")
        if layer.startswith(("head.", "out.")):
            assert layer not in colouriser or not torch.equal(after_1, colouriser.get(layer, after_1 + 1))
        else:
            assert torch.equal(after_1, colouriser[layer]), name
        # Where a BatchNorm follows, a bias has no gradient but rounding, and Adam moves it all the same.
        assert not torch.equal(after_1, after_2), name


@pytest.mark.parametrize("task", TASKS)
def test_phase_2_has_a_new_optimiser_of_all_weights_with_the_lower_rate(whole, task):
    root = whole.root
    first, second = (carried(root / "run", stage)["optimizer_states"][0] for stage in (f"{task}_frozen", task))
    network = [n for n in carried(root / "run", task)["state_dict"] if n.startswith("network.")]
    parameters = [n for n in network if n.endswith(("weight", "bias"))]
    new = [n for n in parameters if n.startswith(("network.head.", "network.out."))]
    assert [len(group["params"]) for group in first["param_groups"]] == [len(new)]
    assert [len(group["params"]) for group in second["param_groups"]] == [len(parameters)]
    assert [group["lr"] for state in (first, second) for group in state["param_groups"]] == [3e-4, 5e-5]
    per_epoch = {"classification": 4, "segmentation": 4}[task]  # 28 images in batches of 8
    assert {float(s["step"]) for s in first["state"].values()} == {2.0 * per_epoch}
    assert {float(s["step"]) for s in second["state"].values()} == {3.0 * per_epoch}  # moments began anew


def test_scores_stand_beside_their_floors_and_the_paper_s_numbers(whole):
    result = whole.result
    classes, masks = (result["stages"][task] for task in TASKS)
    names = {"mean_ap", "first_label_top1", "subset_accuracy", "hamming_accuracy"}
    assert {f"test/{name}" for name in names} <= set(classes["metrics"]) and names <= set(classes["floors"])
    assert classes["metrics"]["test/batch_size"] == len(
        (whole.root / "run/classification/split/test.txt").read_text().split()
    )
    assert {"mean_iou", "mean_iou_foreground", "keras_miou_raw"} == set(masks["floors"])
    assert masks["metrics"]["test/keras_miou_raw"] == pytest.approx(100 * (3 / 4) / 2, abs=0.5)
    assert classes["paper"]["metrics"] == {"test/first_label_top1": 52.83, "test/mean_iou": 47.07}


@pytest.mark.parametrize("task", TASKS)
def test_the_split_is_in_the_run_s_folder_and_in_the_checkpoint_and_the_same_in_both_phases(whole, task):
    root = whole.root
    stored = carried(root / "run", task)["VOCTransferDataModule"]["split"]
    assert stored == carried(root / "run", f"{task}_frozen")["VOCTransferDataModule"]["split"]
    for part, ids in stored.items():
        assert (root / "run" / task / "split" / f"{part}.txt").read_text().split() == ids


@pytest.mark.parametrize("task", TASKS)
def test_a_checkpoint_alone_gives_the_same_test_numbers_noise_included(whole, task, tmp_path):
    root, result = whole.root, whole.result
    judged = judge_here(checkpoint_of(root / "run", task), tmp_path / "eval")
    assert judged["metrics"] == result["stages"][task]["metrics"]


def test_mean_iou_is_that_of_one_confusion_matrix_of_all_images(whole, tmp_path):
    """And not a mean over images, which is another number."""
    root, result = whole.root, whole.result
    counts = np.zeros((4, 4), np.int64)
    each = []
    judge = SegmenterModule.judge

    def watched(self, batch, batch_idx, scores):
        logits = judge(self, batch, batch_idx, scores)
        one = np.zeros((4, 4), np.int64)
        for t, p in zip(batch["mask"].flatten().tolist(), logits.argmax(1).flatten().tolist(), strict=True):
            if t != 255:
                one[t, p] += 1
        counts[:] += one
        each.append(mean_iou(torch.from_numpy(one)))
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmenterModule, "judge", watched)
        judge_here(checkpoint_of(root / "run", "segmentation"), tmp_path / "eval")
    ious = [
        counts[c, c] / (counts[c].sum() + counts[:, c].sum() - counts[c, c])
        for c in range(4)
        if counts[c].sum() + counts[:, c].sum()
    ]
    measured = result["stages"]["segmentation"]["metrics"]["test/mean_iou"]
    assert measured == pytest.approx(100 * np.mean(ious), abs=1e-4)
    assert abs(measured - np.mean(each)) > 1e-3


# ---- broken and resumed ------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_run_broken_in_mid_phase_2_ends_as_the_unbroken_one(whole, task, tmp_path):
    """Dropout included: all losses after the break, the weights, the scores."""
    words = [*whole.words, f"only_stages=[{task}_frozen,{task}]", "callbacks.checkpoint.every_n_steps=1"]
    with pytest.raises(Broken), watched_steps(broken_at=(1, 2)) as before:
        train(tmp_path / "run", *words)
    with watched_steps() as after:
        resumed = train(tmp_path / "run", *words)
    assert set(before).isdisjoint(after) and len(before) == 4 + 2
    expected = {place: loss for place, loss in whole.losses.items() if place[0] == task}
    assert before | after == pytest.approx(expected, abs=1e-5) and len(expected) == 12
    ours, theirs = (carried(run, task)["state_dict"] for run in (tmp_path / "run", whole.root / "run"))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert resumed["metrics"] == whole.result["stages"][task]["metrics"]


def test_a_run_goes_on_in_phase_2_although_the_colouriser_is_gone(whole, tmp_path):
    shutil.copy(whole.root / "pretext.ckpt", tmp_path / "pretext.ckpt")
    words = [*whole.words, f"pretext={tmp_path}/pretext.ckpt", "only_stages=[classification_frozen,classification]"]
    with pytest.raises(Broken), watched_steps(broken_at=(2, 0)):
        train(tmp_path / "run", *words)
    (tmp_path / "pretext.ckpt").unlink()
    assert train(tmp_path / "run", *words)["metrics"] == whole.result["stages"]["classification"]["metrics"]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(whole, tmp_path):
    """SIGKILL in the second phase of each task, through the doors."""
    words = whole.words
    longer = ["pace.classification={frozen: 2, free: 30, all: 32}", "pace.segmentation={frozen: 2, free: 30, all: 32}"]
    words = [*(word for word in words if not word.startswith("pace.")), *longer]
    code, output = run_door("train.py", *words, f"hydra.run.dir={tmp_path}/unbroken")
    assert code == 0, output
    expected = json.loads((tmp_path / "unbroken" / "result.json").read_text())["stages"]
    run_dir = tmp_path / "killed"
    for task in TASKS:
        door = (
            ["train.py", f"ckpt_path={run_dir}"]
            if run_dir.exists()
            else ["train.py", *words, f"hydra.run.dir={run_dir}"]
        )
        process = start_door(*door)
        wait_for(checkpoint_of(run_dir, task))
        time.sleep(0.5)
        process.kill()
        process.communicate()
        assert not (run_dir / task / "result.json").exists()
    code, output = run_door("train.py", f"ckpt_path={run_dir}", "trainer.enable_progress_bar=false")
    assert code == 0, output
    finished = json.loads((run_dir / "result.json").read_text())["stages"]
    for task in TASKS:
        assert finished[task]["metrics"] == expected[task]["metrics"]
        ours, theirs = (carried(run, task)["state_dict"] for run in (run_dir, tmp_path / "unbroken"))
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.slow
def test_two_processes_train_both_tasks_on_the_same_split_and_with_equal_weights_frozen(whole, tmp_path):
    """BatchNorm sees half a batch there, so the scores are others."""
    words = [word for word in whole.words if word != "trainer=cpu"]
    code, output = run_door("train.py", *words, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/run")
    assert code == 0, output
    for task in TASKS:
        alone, together = (carried(run / "run", f"{task}_frozen") for run in (whole.root, tmp_path))
        assert together["VOCTransferDataModule"]["split"] == alone["VOCTransferDataModule"]["split"]
        frozen = [f"network.{n}" for n in whole.colouriser if n.startswith(("e", "b.")) and "running" not in n]
        for name in (name for name in frozen if not name.endswith("num_batches_tracked")):
            assert torch.equal(together["state_dict"][name], alone["state_dict"][name])
        result = json.loads((tmp_path / "run" / task / "result.json").read_text())
        assert result["processes"] == 2 and all(np.isfinite(value) for value in result["metrics"].values())


def wait_for(path: Path, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


# ---- arms --------------------------------------------------------------------------------------------


def test_arms_of_a_sweep_make_a_table(whole, tmp_path):
    short = [f"pace.{task}={{frozen: 1, free: 1, all: 2}}" for task in TASKS]
    for seed in (1, 2):
        for variant in ("gan_colorization_scratch", "gan_colorization_frozen_random"):
            run_dir = tmp_path / f"{variant}_{seed}"
            train(run_dir, *whole.words, *short, f"seed={seed}", f"variant={variant}")
            phases = {*TASKS} if variant.endswith("scratch") else {*TASKS, *(f"{task}_frozen" for task in TASKS)}
            assert {path.name for path in run_dir.iterdir() if path.is_dir()} == phases
    results = read_results([tmp_path])
    rows = [row for group in group_results(results) for row in rows_of(group, ["test/mean_iou"])]
    assert {row[1].split()[0] for row in rows} == {"scratch", "frozen_random"}
    assert all(row[3] == "2" and " ± " in row[4] and float(row[5]) > 0 for row in rows)
    assert {row[1].split()[0]: row[6] for row in rows} == {"scratch": "44.66", "frozen_random": "-"}
    for result in results:  # the other task's scores are there too
        assert result["stages"]["classification"]["metrics"]["test/mean_ap"] > 0


def test_a_colouriser_that_is_not_named_stops_the_run_before_it_trains(whole, tmp_path):
    words = whole.words
    with pytest.raises(InputError, match=r"needs weights: name the colouriser's checkpoint"):
        train(tmp_path / "run", *words[:-1])
    assert not checkpoint_of(tmp_path / "run", "classification_frozen").exists()


def test_fewer_labels_reach_the_training_alone(whole, tmp_path):
    root, words = whole.root, whole.words
    words = [*words, "variant=gan_colorization_labels50", "only_stages=[classification_frozen]"]
    train(tmp_path / "run", *words)
    fewer = carried(tmp_path / "run", "classification_frozen")["VOCTransferDataModule"]["split"]
    all_of_them = carried(root / "run", "classification_frozen")["VOCTransferDataModule"]["split"]
    assert set(fewer["train"]) < set(all_of_them["train"]) and fewer["test"] == all_of_them["test"]


# ---- prediction --------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, whole) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    source = sorted((whole.root / "voc").rglob("*.jpg"))
    shutil.copy(source[0], folder / "a.jpg")
    with Image.open(source[1]) as picture:
        picture.convert("L").resize((57, 41)).save(folder / "deep" / "b.png")
    return folder


def predict(run_dir: Path, task: str, out: Path, folder: Path, *words: str) -> list[dict[str, str]]:
    words = ("mode=predict", f"data.predict_root={folder}", "data.root=gone", *words)
    judge_here(checkpoint_of(run_dir, task), out, *words)
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_predicting_gives_each_class_a_probability(whole, pictures, tmp_path):
    rows = predict(whole.root / "run", "classification", tmp_path / "predicted", pictures)
    assert [row["name"] for row in rows] == ["a.jpg", "deep/b.png"]
    for row in rows:
        probabilities = {name: float(row[name]) for name in ("bird", "cat", "dog")}
        assert all(0 < p < 1 for p in probabilities.values())
        assert row["classes"] == "; ".join(name for name, p in probabilities.items() if p > 0.5)


def test_predicting_masks_writes_palette_pictures_and_overlays_of_the_photograph_s_size(whole, pictures, tmp_path):
    rows = predict(whole.root / "run", "segmentation", tmp_path / "predicted", pictures)
    for row, size in zip(rows, ((50, 40), (57, 41)), strict=True):
        with Image.open(tmp_path / "predicted" / row["mask"]) as picture:
            assert picture.mode == "P" and picture.size == size
            assert np.array_equal(np.array(picture.getpalette()).reshape(-1, 3)[:21], PALETTE[:21])
            shown = sorted(set(np.unique(np.array(picture)).tolist()) - {0})
            assert row["classes"] == "; ".join(["bird", "cat", "dog"][value - 1] for value in shown)
        with Image.open(tmp_path / "predicted" / row["overlay"]) as picture:
            assert picture.size == size


@pytest.mark.parametrize("task", TASKS)
def test_no_picture_is_lost_and_none_depends_on_the_others_whatever_the_test_batch(whole, pictures, tmp_path, task):
    both = predict(whole.root / "run", task, tmp_path / "both", pictures, "data.eval_batch_size=2")
    assert [row["name"] for row in both] == ["a.jpg", "deep/b.png"]
    (pictures / "deep" / "b.png").unlink()
    (alone,) = predict(whole.root / "run", task, tmp_path / "alone", pictures)
    assert alone == both[0]
    if task == "segmentation":
        masks = [np.array(Image.open(tmp_path / out / alone["mask"])) for out in ("both", "alone")]
        assert np.array_equal(*masks)


# ---- both stages' data -------------------------------------------------------------------------------


def data_of(stage: str, *words: str):
    """The datamodule of a stage, set up."""
    config = OmegaConf.to_container(compose_config([*words, "paths.run_dir=unused", "trainer=cpu"]))
    config = let_command_line_win(config, words)
    data = build(resolve_stage(config, Stage(stage, Path("unused")))["data"])
    data.prepare_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.setup("test")
    return data


@pytest.mark.parametrize("task", TASKS)
def test_no_photograph_that_a_task_is_judged_on_has_been_coloured_before(sample_data, task):
    """Trap 9: in coco128 both stages read one folder; the colouriser learns from the rest of it alone."""
    words = ["experiment=gan_colorization_coco128", f"data.root={sample_data}/coco128_voc"]
    coloured = {Path(name).stem for name in data_of("pretext", *words).parts.train}
    split = data_of(task, *words).state_dict()["split"]
    judged = {*split["val"], *split["test"]}
    assert len(coloured) == 96 and len(judged) == 32 and not coloured & judged
    assert set(split["train"]) < coloured  # the 65 labelled ones and the 31 without labels


@pytest.mark.parametrize("task", TASKS)
def test_the_demo_colours_other_pictures_than_those_with_labels(tmp_path, task):
    words = ["experiment=gan_colorization_demo", f"paths.data_dir={tmp_path}"]
    words += [f"coloured_shapes.{part}={count}" for part, count in (("unlabelled", 40), ("held_out", 10), ("train", 4))]
    words += ["coloured_shapes.test=4"]
    pretext = data_of("pretext", *words)
    coloured = {pretext.root / name for name in pretext.parts.train}
    data = data_of(task, *words)
    labelled = {photograph.image for photograph in data._known.values()}
    assert len(coloured) == 40 and len(labelled) == 8 and not coloured & labelled
    pixels = {np.array(Image.open(path)).tobytes() for path in coloured}
    assert not any(np.array(Image.open(path)).tobytes() in pixels for path in labelled)
