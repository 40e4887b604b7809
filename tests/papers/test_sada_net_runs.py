"""SAda-Net's runs whole: rounds, best weights, resume, prediction, variants, and several processes."""

import csv
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from callbacks.consistency_map_update import ConsistencyMapUpdate
from callbacks.iterative_step import Schedule
from datamodules.shapes_stereo import ShapesStereo
from datamodules.stereo import StereoDataModule
from datamodules.stereo_files import Middlebury2014
from lightning_modules.sada_net import SadaNetModule
from runs.errors import InputError
from runs.round_store import Generation
from tests.papers.test_sada_net_equations import a_pair, make_matcher
from tests.toy.running import judge_here, run_door, start_door, train_here

SIZE = ["data.reader.height=48", "data.reader.width=72", "data.reader.rectangles=2", "data.reader.disparities=[3,6]"]
SHOWN = [
    "experiment=sada_net_demo",
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "model.matcher.branch.channels=12",
    "model.matcher.similarity_net.channels=12",
    "pace.batch_size=16",
    "pace.steps=6",
    "pace.rounds=3",
    *SIZE,
]
TINY = ["callbacks.figures=null", *SHOWN]  # drawing takes longer than these runs
STEP = "consistency_map_update"


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def state(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def history(run_dir: Path) -> list[dict]:
    return state(run_dir)["callbacks"][f"IterativeStep[{STEP}]"]["history"]


def without_times(records: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("sada_net")
    result = train(root / "run", *SHOWN, f"paths.data_dir={root}/data")
    return root, result


# --- one run


def test_the_demo_trains_on_real_files_and_shows_its_pictures(demo):
    root, result = demo
    assert (root / "data" / "shapes_stereo" / "trainingQ" / "shapes" / "disp0GT.pfm").is_file()
    scores = {f"{k}pe_{of}" for k in (1, 2, 3, 4) for of in ("all", "cons")} | {"completion", "inconsistent"}
    assert set(result["metrics"]) == {f"test/{name}" for name in scores}
    assert set(result["floors"]) == scores
    figures = {path.name for path in (root / "run" / "figures").iterdir()}
    assert {f"{STEP}_maps.png", f"{STEP}_convergence.png", "test_disparity.png"} <= figures
    with (root / "run" / "metrics.csv").open() as file:
        logged = set(csv.DictReader(file).fieldnames)
    names = {
        "inconsistent_points",
        "inconsistent",
        "accepted",
        "sign",
        "2pe_all",
        "2pe_cons",
        "completion",
        "correlation",
    }
    assert {f"{STEP}/{name}" for name in names} | {"train/loss", "train/similarity_gap"} <= logged


def test_rounds_run_before_any_step_and_after_every_epoch_the_last_included(demo):
    records = history(demo[0] / "run")
    assert [record["step"] for record in records] == [0, 6, 12, 18]


def test_the_floor_is_the_untrained_cosine_on_the_same_pair(demo, tmp_path):
    root, result = demo
    first = history(root / "run")[0]
    assert first["2pe_all"] == pytest.approx(result["floors"]["2pe_all"])
    assert first["inconsistent"] == pytest.approx(result["floors"]["inconsistent"])
    untrained = train(tmp_path / "run", *TINY, f"paths.data_dir={root}/data", "variant=sada_net_untrained")
    assert {f"test/{name}": value for name, value in result["floors"].items()} == untrained["metrics"]
    assert untrained["floors"] == result["floors"]


def test_what_is_tested_is_the_round_with_the_fewest_inconsistent_points(demo):
    root, result = demo
    best = min(history(root / "run"), key=lambda record: record["inconsistent_points"])
    for name in ("2pe_all", "4pe_all", "inconsistent", "completion"):
        assert result["metrics"][f"test/{name}"] == pytest.approx(best[name])


def test_the_correlation_is_that_of_points_and_errors_over_the_trained_rounds(demo):
    records = history(demo[0] / "run")
    points, errors = ([record[name] for record in records[1:]] for name in ("inconsistent_points", "2pe_all"))
    if np.ptp(points) and np.ptp(errors):
        assert records[-1]["correlation"] == pytest.approx(np.corrcoef(points, errors)[0, 1])
    assert "correlation" not in records[2]


def test_the_maps_hold_what_passed_the_check_as_float16_with_nan(demo):
    root, _ = demo
    records = history(root / "run")
    held = Generation(root / "run" / "rounds" / STEP / f"{records[-1]['generation']:06d}")
    map_ = held["disparity"][0]
    assert map_.dtype == np.float16 and map_.shape == (48, 72)
    record = next(record for record in records if record["round"] == held.number)
    assert np.isnan(map_).sum() == record["inconsistent_points"]
    assert np.nanmin(map_) >= 0 and np.nanmax(map_) <= 8 and (map_[np.isfinite(map_)] % 1 == 0).all()
    assert held.notes["sign"] == -1 and held.notes["matcher"] in ("untrained", "current")


def test_a_checkpoint_alone_gives_the_same_test_numbers(demo, tmp_path):
    root, result = demo
    judged = judge_here(root / "run" / "checkpoints" / "last.ckpt", tmp_path)
    assert judged["metrics"] == result["metrics"] and judged["floors"] == result["floors"]


def test_tiles_give_the_same_test_numbers(demo, tmp_path):
    root, result = demo
    judged = judge_here(root / "run" / "checkpoints" / "last.ckpt", tmp_path, "model.matcher.tile=20")
    assert judged["metrics"] == pytest.approx(result["metrics"], abs=0.1)


@pytest.mark.parametrize("fill", [False, True])
def test_predicting_two_folders_of_images_writes_a_map_and_a_picture_for_each(demo, tmp_path, fill):
    root, _ = demo
    scene = root / "data" / "shapes_stereo" / "trainingQ" / "shapes"
    for side, name in (("im_left", "im0"), ("im_right", "im1")):
        (tmp_path / "mine" / side / "a").mkdir(parents=True)
        Image.open(scene / f"{name}.png").save(tmp_path / "mine" / side / "a" / "one.png")
    words = [
        f"data.predict_root={tmp_path}/mine",
        f"data.root={tmp_path}/gone",
        "data.max_disp=8",
        f"model.fill={fill}",
    ]
    judge_here(root / "run" / "checkpoints" / "last.ckpt", tmp_path / "out", "mode=predict", *words)
    assert not (tmp_path / "gone").exists()
    with (tmp_path / "out" / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    map_ = tifffile.imread(tmp_path / "out" / row["disparity"])
    with Image.open(tmp_path / "out" / row["picture"]) as picture:
        colours = np.asarray(picture)
    assert row["name"] == "a/one.png" and row["sign"] == "-1"
    assert map_.shape == (48, 72) and map_.dtype == np.float32 and colours.shape == (48, 72, 3)
    if fill:
        assert np.isfinite(map_).all()
    else:
        assert 100 * np.isfinite(map_).mean() == pytest.approx(float(row["consistent_percent"]), abs=0.006)
        assert np.array_equal(np.isnan(map_), (colours == 0).all(axis=2))
        assert (map_[np.isfinite(map_)] % 1 != 0).any()  # sub-pixel


def test_predicting_under_auto_finds_the_geometry_of_each_pair(demo, tmp_path):
    root, _ = demo
    scene = root / "data" / "shapes_stereo" / "trainingQ" / "shapes"
    # The second pair is the first one with its images exchanged.
    for pair, names in (("as_trained", ("im0", "im1")), ("exchanged", ("im1", "im0"))):
        for side, name in zip(("im_left", "im_right"), names, strict=True):
            (tmp_path / "mine" / side).mkdir(parents=True, exist_ok=True)
            Image.open(scene / f"{name}.png").save(tmp_path / "mine" / side / f"{pair}.png")
    words = [f"data.predict_root={tmp_path}/mine", "data.max_disp=8", "data.disparity_sign=auto"]
    judge_here(root / "run" / "checkpoints" / "last.ckpt", tmp_path / "out", "mode=predict", *words)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        assert {row["name"]: row["sign"] for row in csv.DictReader(file)} == {
            "as_trained.png": "-1",
            "exchanged.png": "1",
        }


def test_predicting_in_the_layout_of_the_reader_needs_no_range(demo, tmp_path):
    root, _ = demo
    words = [f"data.predict_root={root}/data/shapes_stereo", f"data.root={tmp_path}/gone"]
    judge_here(root / "run" / "checkpoints" / "last.ckpt", tmp_path / "out", "mode=predict", *words)
    assert (tmp_path / "out" / "predictions" / "disparity" / "shapes.tif").is_file()


# --- resume


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["step", "round"])
def test_a_run_broken_in_an_epoch_or_a_round_goes_on_and_ends_alike(demo, tmp_path, monkeypatch, where):
    root, result = demo
    words = [*TINY, f"paths.data_dir={root}/data"]
    step = SadaNetModule.training_step
    with monkeypatch.context() as patch, pytest.raises(Broken):
        if where == "step":

            def break_in_the_second_epoch(self, batch, batch_idx):
                if self.global_step == 9:
                    raise Broken
                return step(self, batch, batch_idx)

            patch.setattr(SadaNetModule, "training_step", break_in_the_second_epoch)
        else:
            match = SadaNetModule.match

            def break_in_the_third_round(self, pair, which, sign):
                estimate = match(self, pair, which, sign)
                if self.global_step == 12 and which == "current":
                    raise Broken
                return estimate

            patch.setattr(SadaNetModule, "match", break_in_the_third_round)
        train(tmp_path / "run", *words)
    assert 0 < state(tmp_path / "run")["global_step"] < 18
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    assert without_times(history(tmp_path / "run")) == without_times(history(root / "run"))
    ours, theirs = (state(folder)["state_dict"] for folder in (tmp_path / "run", root / "run"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_resumed_run_keeps_the_rule_by_which_its_maps_were_accepted(demo, tmp_path):
    root, _ = demo
    words = [*TINY, f"paths.data_dir={root}/data", "pace.rounds=1"]
    train(tmp_path / "run", *words)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(InputError, match="accept changed since round"):
        train(tmp_path / "run", f"ckpt_path={tmp_path}/run", *words[:-1], f"callbacks.{STEP}.accept=always")


# --- the rounds' rules


@pytest.mark.parametrize("sign", [-1, 1])
def test_auto_finds_the_sign_of_either_geometry(demo, tmp_path, sign):
    root, _ = demo
    scene = root / "data" / "shapes_stereo" / "trainingQ" / "shapes"
    for side, name in (("im_left", "im0"), ("im_right", "im1")):
        image = np.asarray(Image.open(scene / f"{name}.png"))
        (tmp_path / side).mkdir()
        Image.fromarray(image[:, ::-1] if sign == 1 else image).save(tmp_path / side / "one.png")
    words = [*TINY[:-4], "data=s2p_tiles", "data.disparity_sign=auto", "data.max_disp=8", f"data.root={tmp_path}"]
    result = train(tmp_path / "run", *words, "pace.rounds=1")
    assert history(tmp_path / "run")[0]["sign"] == sign
    assert set(result["metrics"]) == {"test/inconsistent"}  # no truth
    judged = judge_here(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "eval")
    assert judged["metrics"] == result["metrics"]


def test_the_wrong_sign_collapses_at_the_start(demo, tmp_path):
    root, _ = demo
    right = history(root / "run")[0]["inconsistent"]
    train(tmp_path / "run", *TINY, f"paths.data_dir={root}/data", "data.disparity_sign=1", "pace.rounds=1")
    assert history(tmp_path / "run")[0]["inconsistent"] > right + 20


def records(points: list[float]) -> list[dict[str, float]]:
    return [{"inconsistent_points": n} for n in points]


def a_step(folder: Path, accept: str = "improve", patience: int = 2) -> ConsistencyMapUpdate:
    return ConsistencyMapUpdate(Schedule(every_n_epochs=1, first_at=0), 0, str(folder), accept, patience, [2])


def test_training_stops_after_patience_rounds_without_fewer_inconsistent_points(tmp_path):
    step = a_step(tmp_path)
    assert not step.should_stop(records([9]))
    assert not step.should_stop(records([9, 9]))
    assert step.should_stop(records([9, 9, 10]))  # equal is no improvement
    assert not step.should_stop(records([9, 9, 8]))
    assert step.should_stop(records([9, 7, 8, 8]))


def test_a_run_that_stops_early_is_tested_with_its_best_round(demo, tmp_path):
    root, _ = demo
    words = [*TINY, f"paths.data_dir={root}/data", "variant=sada_net_untrained", "pace.rounds=9", "pace.patience=2"]
    result = train(tmp_path / "run", *words)
    assert state(tmp_path / "run")["global_step"] == 12  # two epochs without an improvement
    assert result["metrics"]["test/2pe_all"] == result["floors"]["2pe_all"]


class FakeModule:
    """Removes a given number of pixels in each round."""

    device = torch.device("cpu")

    def __init__(self, removed: list[int]) -> None:
        self.removed, self.kept, self.sign = iter(removed), 0, 0

    def match(self, pair, which, sign):
        consistent = torch.ones(4, 10, dtype=torch.bool)
        consistent.view(-1)[: next(self.removed)] = False
        maps = torch.full((4, 10), 3.0)
        return type("Estimate", (), {"disparity": maps, "refined": maps, "consistent": consistent})

    def count_consistent(self, pair, sign):
        raise AssertionError("the data name the sign")

    def keep_best(self):
        self.kept += 1

    def use_sign(self, sign):
        self.sign = sign

    def sign_of(self, pair):
        return self.sign


class FakeData:
    def training_pairs(self):
        there = torch.ones(4, 10, dtype=torch.bool)
        return [{"index": torch.tensor(0), "name": "a", "sign": torch.tensor(-1), "valid": there}]


@pytest.mark.parametrize(
    ("accept", "holding"),
    [("improve", [1, 1, 3, 3, 5]), ("always", [1, 2, 3, 4, 5]), ("never", [1, 1, 1, 1, 1])],
)
def test_maps_are_replaced_as_accept_says_and_the_best_weights_are_kept_whatever_it_says(tmp_path, accept, holding):
    step, module = a_step(tmp_path, accept), FakeModule([20, 20, 15, 30, 10])
    step.progress = lambda items, *_: items
    held, kept = [], []
    for number in range(1, 6):
        step.round = number
        metrics = step.run(None, module, FakeData())
        if step._writer.committed is not None:
            step.rounds.show(step._writer.committed)
        step.history.append(metrics)
        held.append(step.rounds.generation.number)
        kept.append(module.kept)
    assert held == holding
    assert kept == [0, 0, 1, 1, 2]  # 15 and 10 are fewer than ever; the first round has no training to keep


def test_no_consistent_pixel_at_the_start_is_answered(tmp_path):
    step, module = a_step(tmp_path), FakeModule([40])
    step.progress, step.round = lambda items, *_: items, 1
    with pytest.raises(InputError, match="initial check left 0 pixels; check rectification, sign, range"):
        step.run(None, module, FakeData())


class Disagreeing(FakeModule):
    """Counts given numbers of consistent pixels at the two signs; a pair is known by its index."""

    def __init__(self, counts: list[dict[int, int]]) -> None:
        super().__init__([])
        self.counts = counts

    def count_consistent(self, pair, sign):
        return self.counts[int(pair["index"])][sign]


@pytest.mark.parametrize("right", [-1, 1])
def test_auto_judges_the_sign_on_all_pairs_together(tmp_path, right):
    pairs = [{"index": torch.tensor(i), "sign": torch.tensor(0)} for i in range(3)]
    # The first pair alone, and most pairs by count, speak for the other sign.
    module = Disagreeing([{right: 10, -right: 12}, {right: 10, -right: 11}, {right: 30, -right: 20}])
    assert a_step(tmp_path)._find_sign(module, pairs) == right


@pytest.mark.parametrize(
    ("schedule", "patience", "sentence"),
    [
        ({"every_n_epochs": 1}, 3, "the first maps must be there before any training: set first_at=0"),
        ({"every_n_epochs": 1, "first_at": 0}, 0, "patience=0 must be 1 round or more"),
    ],
)
def test_rules_that_make_no_sense_are_named(tmp_path, schedule, patience, sentence):
    with pytest.raises(InputError, match=sentence):
        ConsistencyMapUpdate(Schedule(**schedule), 0, str(tmp_path), "improve", patience, [2])


# --- training


def test_all_that_trains_moves_and_nothing_else(demo):
    root, _ = demo
    weights = state(root / "run")["state_dict"]
    for part in ("branch", "similarity_net"):
        names = [name for name in weights if name.startswith(f"matcher.{part}.")]
        names = [name for name in names if name != "matcher.similarity_net.layers.4.bias"]  # cancels out in Eq. 1
        assert names and not any(
            torch.equal(weights[name], weights[f"untrained.{name.partition('.')[2]}"]) for name in names
        )


@pytest.mark.parametrize("variant", ["cosine", "zncc"])
def test_the_baselines_train_what_they_should(demo, tmp_path, variant):
    root, result = demo
    ours = train(tmp_path / "run", *TINY, f"paths.data_dir={root}/data", f"variant=sada_net_{variant}")
    weights = state(tmp_path / "run")["state_dict"]
    moved = {
        part: not torch.equal(weights[f"matcher.{part}.layers.0.weight"], weights[f"untrained.{part}.layers.0.weight"])
        for part in ("branch", "similarity_net")
    }
    assert moved == {"branch": variant == "cosine", "similarity_net": False}
    if variant == "cosine":
        assert ours["floors"]["2pe_all"] == result["floors"]["2pe_all"]
    else:
        assert ours["floors"] == {name.removeprefix("test/"): value for name, value in ours["metrics"].items()}


# --- precision


def a_module(**changes) -> SadaNetModule:
    return SadaNetModule(make_matcher(**changes), lambda weights: None, 0.2, [2], False)


@pytest.mark.parametrize("similarity", ["trained", "cosine"])
def test_matching_is_in_full_precision_within_mixed_precision(similarity):
    module, pair = a_module(similarity=similarity), a_pair(40, 60)
    plain = module.match(pair, "current", -1)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.matcher.branch(pair["left"][None, None]).dtype == torch.bfloat16  # it would matter
        mixed = module.match(pair, "current", -1)
    for name in ("disparity", "refined", "consistent", "disparity_right"):
        assert torch.equal(getattr(plain, name), getattr(mixed, name))


def test_no_tf32_while_a_pair_is_matched_and_the_settings_as_before_afterwards(monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    monkeypatch.setattr(cudnn, "deterministic", True)

    def matcher(pair, sign, smooth):
        return cudnn.allow_tf32, cudnn.deterministic, cudnn.enabled

    assert a_module().run_matcher(matcher, a_pair(), -1, True) == (False, True, True)
    assert cudnn.allow_tf32 and cudnn.deterministic and cudnn.enabled


def test_weights_of_64_bits_match_images_of_32_and_of_16_bits_are_refused():
    pair, module = a_pair(), a_module()
    single, double = module.match(pair, "current", -1), module.double().match(pair, "current", -1)
    assert (single.disparity == double.disparity).float().mean() > 0.99
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(InputError, match=r"matching needs weights of 32 bits.*: take 32-true, or bf16-mixed"):
            a_module().to(dtype).match(pair, "current", -1)


def test_a_device_without_float64_is_named(monkeypatch):
    module = a_module()
    monkeypatch.setattr(SadaNetModule, "device", torch.device("mps"))
    with pytest.raises(InputError, match="needs float64, which Apple's GPUs do not have: add trainer=cpu"):
        module.match(a_pair(), "current", -1)


def test_a_run_in_64_bits_ends(demo, tmp_path):
    words = [*TINY, f"paths.data_dir={demo[0]}/data", "pace.rounds=1", "pace.steps=1", "trainer.precision=64-true"]
    assert train(tmp_path / "run", *words)["floors"] == pytest.approx(demo[1]["floors"], abs=1)


def test_the_loss_falls_and_matches_become_more_similar_than_others(demo, tmp_path):
    root, _ = demo
    words = [*TINY, f"paths.data_dir={root}/data", "pace.steps=20", "pace.rounds=2", "pace.batch_size=48"]
    train(tmp_path / "run", *words)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    losses, gaps = ([float(row[f"train/{name}"]) for row in rows] for name in ("loss", "similarity_gap"))
    assert losses[-1] < 0.5 * 0.2  # an untrained network has the margin, 0.2
    assert gaps[-1] > 0.2  # Eq. 2 as printed would drive it below 0


# --- processes and kills


def several_pairs(root: Path) -> Path:
    for number in range(3):
        scene = ShapesStereo(number, 48, 72 - 4 * number, 2, (2, 6), 0, 1.1, 5.0, 0.03)
        scene.write(root / f"one{number}")
        (root / "all" / "trainingQ").mkdir(parents=True, exist_ok=True)
        (root / f"one{number}" / "trainingQ" / "shapes").rename(root / "all" / "trainingQ" / f"scene{number}")
    return root / "all"


def test_two_processes_make_the_maps_of_one(tmp_path):
    pairs = several_pairs(tmp_path)
    words = [*TINY[:-4], "data=middlebury2014", f"data.root={pairs}", "pace.rounds=1", "pace.steps=1"]
    one = train(tmp_path / "one", *words)
    code, output = run_door("train.py", *words, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/two")
    assert code == 0, output
    first = [Generation(tmp_path / name / "rounds" / STEP / "000001") for name in ("one", "two")]
    assert np.array_equal(first[0].indices("disparity"), [0, 1, 2])
    for index in range(3):
        assert np.array_equal(*(generation["disparity"][index] for generation in first), equal_nan=True)
    records = [without_times(history(tmp_path / name)) for name in ("one", "two")]
    assert records[0][0] == records[1][0]  # untrained weights: equal to the last digit
    assert records[0][1]["inconsistent"] == pytest.approx(records[1][1]["inconsistent"], abs=1)  # one step on
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["processes"] == 2 and two["floors"] == one["floors"]


@pytest.mark.slow
@pytest.mark.parametrize("similarity", ["trained", "zncc"])
def test_one_pair_is_tested_by_two_processes_as_by_one(tmp_path, similarity):
    words = [*TINY, f"paths.data_dir={tmp_path}/data", "pace.rounds=1", "pace.steps=1"]
    words.append(f"model.matcher.similarity={similarity}")  # zncc: no weight trains, which is no reason to fail
    one = train(tmp_path / "one", *words)
    code, output = run_door("train.py", *words, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/two")
    assert code == 0, output
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["processes"] == 2 and two["floors"] == one["floors"] and set(two["metrics"]) == set(one["metrics"])
    assert two["metrics"] == one["metrics"] or similarity == "trained"


def test_a_process_without_a_pair_gets_one_that_counts_for_nothing(demo):
    data = StereoDataModule(
        reader=Middlebury2014("Q", False), root=None, scale=1, disparity_sign=-1, min_disp=None, max_disp=None,
        train_count=None, test_count=None, split_seed=0, judge_on="test", batch_size=4, patches_per_image=4,
        batches_per_epoch=1, patch=11, max_offset=4, predict_root=str(demo[0] / "data" / "shapes_stereo"), seed=0,
    )  # fmt: skip
    data.setup("predict")
    module = a_module(similarity="zncc", guided_filter=False, subpixel=False)
    rows = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        (batch,) = data.predict_dataloader()
        rows.append(module.predict_step(batch, 0))
        module.test_step(batch, 0)
        assert module.test_errors.update_called == (rank == 0)
        module.test_errors.reset()
    assert [row["name"] for row in rows[0]] == ["shapes"] and rows[1] == []


@pytest.mark.parametrize("similarity", ["trained", "cosine", "zncc"])
def test_a_weight_wants_a_gradient_even_where_nothing_is_optimised(similarity):
    matcher = make_matcher(similarity=similarity)
    module = SadaNetModule(matcher, lambda weights: torch.optim.SGD(weights, lr=0.1), 0.2, [2], False)
    # DistributedDataParallel refuses a module without any.
    assert any(weight.requires_grad for weight in module.parameters())
    optimizer = module.configure_optimizers()
    assert (optimizer is None) == (similarity == "zncc")
    if optimizer is not None:
        assert all(weight is not module.unused for group in optimizer.param_groups for weight in group["params"])


def test_the_real_sample_is_matched_trained_and_judged_alike(sample_data, tmp_path):
    words = [*TINY[:-4], "data=middlebury2014", f"data.root={sample_data}/middlebury2014", "data.scale=4", "seed=0"]
    result = train(tmp_path / "run", *words, "pace.rounds=1", "model.matcher.guided_filter=false")
    # Random features match a real pair: 2-PE about 16 and 10 % inconsistent were measured elsewhere.
    assert 12 < result["floors"]["2pe_all"] < 21 and 7 < result["floors"]["inconsistent"] < 14
    judged = judge_here(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "eval")
    assert judged["metrics"] == result["metrics"]


@pytest.mark.slow
def test_a_run_killed_in_a_round_or_between_rounds_ends_with_the_same_number(tmp_path):
    words = [*TINY, f"paths.data_dir={tmp_path}/data", "pace.steps=40", "pace.rounds=4"]
    code, output = run_door("train.py", *words, f"hydra.run.dir={tmp_path}/unbroken")
    assert code == 0, output
    expected = json.loads((tmp_path / "unbroken" / "result.json").read_text())["metrics"]
    rounds = Path("rounds") / STEP
    moments = {
        "in_a_round": rounds / "000003.partial",
        "between": rounds / "000002",
        "saved": Path("checkpoints/last.ckpt"),
    }
    broken = 0
    for name, moment in moments.items():
        run_dir = tmp_path / name
        process = start_door("train.py", *words, f"hydra.run.dir={run_dir}")
        deadline = time.monotonic() + 120
        while not (run_dir / moment).exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep({"in_a_round": 0.0, "between": 0.3, "saved": 0.1}[name])
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        broken += not (run_dir / "result.json").exists()
        code, output = run_door("train.py", f"ckpt_path={run_dir}", "trainer.enable_progress_bar=false")
        assert code == 0, output
        assert json.loads((run_dir / "result.json").read_text())["metrics"] == expected
        assert without_times(history(run_dir)) == without_times(history(tmp_path / "unbroken"))
    assert broken == 3  # or the moments prove nothing
