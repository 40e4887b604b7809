"""SuperSimpleNet's experiments run whole: trained, resumed, judged again, predicting, exported, on every layout."""

import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tifffile
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image

from callbacks.throughput import ThroughputMeter
from lightning_modules.supersimplenet import SuperSimpleNetModule
from runs.building import build
from runs.checkpoints import evaluation_config, read_checkpoint
from runs.composition import to_plain
from runs.errors import InputError
from tests.datamodules.anomaly_layouts import (
    generated_sources,
    lay_folder,
    lay_ksdd2,
    lay_mvtec,
    lay_sensum,
    lay_visa,
    tile_sources,
)
from tests.toy.running import judge_here, run_door, start_door, train_here

QUIET = ["trainer=cpu", "trainer.enable_progress_bar=false"]
UNDRAWN = "callbacks.figures=null"
SMALL = [
    *QUIET,
    "model.network.seg_channels=16",
    "model.network.cls_channels=8",
    "data.size=[64,64]",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.max_epochs=3",
]
TINY = [
    *SMALL,
    "experiment=supersimplenet_demo",
    "data.reader.side=64",
    "data.reader.train_normal=10",
    "data.reader.train_defective=2",
    "data.reader.test_normal=3",
    "data.reader.test_defective=4",
    "data.reader.scratch_length=[20,30]",
]
PAPERS_STAGES = ["model.network.extractor.layers=[2,3]", "model.network.extractor.upscale=2"]
OTHER_LAYOUT = [*SMALL, "model=supersimplenet_small", UNDRAWN]
PIXELS = {"pixel_auroc", "pixel_ap", "aupro"}
METRICS = {"auroc", "ap", "seg_auroc", "seg_ap", *PIXELS}
DECISIONS = {"f1", "precision", "recall"}  # where images were kept back to set thresholds by


def train(run_dir: Path, *words: str) -> dict:
    train_here(run_dir, *words)
    return json.loads((run_dir / "result.json").read_text())


def checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint(run_dir), weights_only=True)["state_dict"]


def losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("supersimplenet")
    result = train(root / "run", *TINY, *PAPERS_STAGES, "data.reader.val_split=0.3", f"paths.data_dir={root}/data")
    return root, result


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken")
    return root / "run", train(root / "run", *TINY, UNDRAWN, f"paths.data_dir={root}/data")


def test_the_demo_trains_on_real_files_and_reports_every_score_beside_its_floor(demo):
    root, result = demo
    assert len(list((root / "data" / "stripes_anomaly").rglob("*_GT.png"))) == 19
    assert set(result["metrics"]) == {f"test/{name}" for name in METRICS | DECISIONS}
    assert set(result["floors"]) == METRICS | DECISIONS
    assert all(np.isfinite(value) for value in result["metrics"].values())
    assert result["floors"]["auroc"] == 50 and result["floors"]["aupro"] == 15
    assert result["floors"]["ap"] == pytest.approx(400 / 7)
    assert {path.name for path in (root / "run" / "figures").iterdir()} == {"test_anomaly_maps.png", "test_scores.png"}
    with (root / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["frozen_features/noise_ratio"]) == pytest.approx(0.3)
    assert {"train/loss_l1t", "train/loss_focal_map", "train/loss_focal_score"} <= set(rows[0])
    assert any(row["val/score_threshold"] for row in rows)


def test_a_checkpoint_alone_gives_the_same_test_numbers(demo):
    root, result = demo
    again = judge_here(checkpoint(root / "run"), root / "eval")
    assert again["metrics"] == result["metrics"]


def test_predicting_on_a_folder_writes_scores_maps_masks_and_heat_maps(demo):
    root, _ = demo
    pictures = root / "pictures"
    (pictures / "deep").mkdir(parents=True)
    source = sorted((root / "data" / "stripes_anomaly" / "test").glob("*[0-9].png"))
    shutil.copy(source[0], pictures / "a.png")
    with Image.open(source[-1]) as picture:
        picture.resize((90, 50)).save(pictures / "deep" / "b.jpg")
    words = ["mode=predict", f"data.predict_root={pictures}", f"data.root={root}/gone"]
    judge_here(checkpoint(root / "run"), root / "predicted", *words)
    with (root / "predicted" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["a.png", "deep/b.jpg"]
    of_score, threshold = weights(root / "run")["thresholds"].tolist()
    for row, size in zip(rows, ((64, 64), (90, 50)), strict=True):
        assert 0 <= float(row["score"]) <= 1
        assert float(row["score_threshold"]) == pytest.approx(1 / (1 + np.exp(-of_score)))
        assert row["defective"] == str(float(row["score"]) > float(row["score_threshold"]))
        map_ = tifffile.imread(root / "predicted" / row["map"])
        assert map_.shape == size[::-1]
        with (
            Image.open(root / "predicted" / row["mask"]) as mask,
            Image.open(root / "predicted" / row["heat_map"]) as heat,
        ):
            assert np.array_equal(np.asarray(mask) > 0, map_ > threshold)
            assert heat.size == size and heat.mode == "RGB"
    assert not (root / "gone").exists()


def test_the_export_answers_as_torch_on_any_batch(demo):
    root, _ = demo
    judge_here(checkpoint(root / "run"), root / "exported", "mode=export", f"data.root={root}/gone")
    session = onnxruntime.InferenceSession(str(root / "exported" / "model.onnx"), providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    kept = weights(root / "run")["thresholds"].tolist()
    assert [float(notes["score_threshold"]), float(notes["map_threshold"])] == pytest.approx(kept)
    module = module_of(root / "run")
    for count in (1, 3):
        image = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8)
        maps, scores = session.run(["anomaly_map", "score"], {"image": image.numpy()})
        with torch.no_grad():
            expected = module(image)  # by the plain network
        assert maps.shape == (count, 64, 64) and scores.shape == (count,)
        assert np.abs(maps - expected[0].numpy()).max() < 1e-4
        assert np.abs(scores - expected[1].numpy()).max() < 1e-4


def module_of(run_dir: Path) -> SuperSimpleNetModule:
    config = evaluation_config(checkpoint(run_dir))
    plain = to_plain(OmegaConf.create({"model": config["model"]}))
    module, content = build(plain["model"]), read_checkpoint(checkpoint(run_dir))
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    return module.eval()


def test_cached_features_train_exactly_as_computed_ones(unbroken, tmp_path):
    run, cached = unbroken
    words = [*TINY, UNDRAWN, f"paths.data_dir={tmp_path}/data", "data.cache_features=false"]
    computed = train(tmp_path / "computed", *words)
    assert (run / "rounds" / "frozen_features" / "000001" / "feature_map.npy").is_file()
    assert not (tmp_path / "computed" / "rounds" / "frozen_features" / "000001").exists()
    assert losses(run) == pytest.approx(losses(tmp_path / "computed"), rel=1e-5)
    for name, value in cached["metrics"].items():
        assert value == pytest.approx(computed["metrics"][name], abs=1e-2)


class Broken(Exception):
    pass


def break_at(patch, epoch: int) -> None:
    step = SuperSimpleNetModule.training_step

    def broken(self, batch, batch_idx):
        if self.current_epoch == epoch and batch_idx == 1:
            raise Broken
        return step(self, batch, batch_idx)

    patch.setattr(SuperSimpleNetModule, "training_step", broken)


@pytest.mark.parametrize("regime", ["unsupervised", "supervised"])
def test_a_broken_run_goes_on_and_ends_with_the_same_weights(unbroken, tmp_path, regime):
    words = [*TINY, UNDRAWN, f"paths.data_dir={tmp_path}/data"]
    run, result = unbroken
    if regime == "supervised":
        words.append("variant=supersimplenet_supervised")
        run, result = tmp_path / "unbroken", train(tmp_path / "unbroken", *words)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 2)
        train(tmp_path / "run", *words)
    assert train(tmp_path / "run", *words)["metrics"] == result["metrics"]
    expected = weights(run)
    assert expected["thresholds"].isnan().all()  # nothing was kept back, and the test images set none
    for name, value in weights(tmp_path / "run").items():
        assert torch.equal(value.nan_to_num(), expected[name].nan_to_num())


def test_a_run_on_weights_from_a_file_needs_its_checkpoint_and_that_file(tmp_path):
    """The checkpoint leaves the frozen backbone out; the run resumes, and is judged, with the file's weights again."""
    torch.manual_seed(4)
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    words = [*TINY, UNDRAWN, f"paths.data_dir={tmp_path}/data", "trainer.max_epochs=2"]
    words += [f"model.network.extractor.checkpoint_path={tmp_path}/resnet18.pth"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Broken):
        break_at(patch, 1)
        train(tmp_path / "run", *words)
    result = train(tmp_path / "run", *words)
    assert not any("extractor" in name for name in weights(tmp_path / "run"))
    again = judge_here(checkpoint(tmp_path / "run"), tmp_path / "eval")
    assert again["metrics"] == result["metrics"]
    (tmp_path / "resnet18.pth").rename(tmp_path / "moved.pth")
    with pytest.raises(InputError, match=r"the checkpoint holds no backbone.*no weights file .*resnet18\.pth"):
        judge_here(checkpoint(tmp_path / "run"), tmp_path / "gone")
    moved = f"model.network.extractor.checkpoint_path={tmp_path}/moved.pth"
    assert judge_here(checkpoint(tmp_path / "run"), tmp_path / "moved", moved)["metrics"] == result["metrics"]


def test_supervised_training_sees_defects_and_unsupervised_does_not(tmp_path):
    seen = []
    step = SuperSimpleNetModule.training_step

    def watched(self, batch, batch_idx):
        seen.append((int(batch["label"].sum()), len(batch["label"])))
        return step(self, batch, batch_idx)

    words = [*TINY, UNDRAWN, f"paths.data_dir={tmp_path}/data", "trainer.max_epochs=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SuperSimpleNetModule, "training_step", watched)
        train(tmp_path / "unsupervised", *words)
        assert sum(count for _, count in seen) == 10 and not any(defective for defective, _ in seen)
        seen.clear()
        train(tmp_path / "supervised", *words, "variant=supersimplenet_supervised")
    assert sum(count for _, count in seen) == 16 and sum(defective for defective, _ in seen) == 8


@pytest.mark.parametrize("variant", ["simplenet", "no_anomalies", "journal", "untrained"])
def test_baselines_ablations_and_the_control_run(unbroken, tmp_path, variant):
    words = [*TINY, UNDRAWN, f"paths.data_dir={tmp_path}/data", f"variant=supersimplenet_{variant}"]
    result = train(tmp_path / "run", *words, "trainer.max_epochs=1")
    assert result["variant"] == variant
    if variant == "untrained":  # the convolutions are as they were drawn
        first, second = (weights(tmp_path / "run"), weights(unbroken[0]))
        name = "network.adaptor.bias"
        assert float((first[name] - second[name]).abs().max()) > 0
        assert losses(tmp_path / "run")[0] > losses(unbroken[0])[-1]
    if variant == "simplenet":  # its score is the highest value of its map
        assert result["metrics"]["test/auroc"] == result["metrics"]["test/seg_auroc"]


LAYOUTS = {
    "mvtec": (lay_mvtec, ["data.category=tile"]),
    "visa": (lay_visa, ["data.category=tile"]),
    "ksdd2": (lay_ksdd2, []),
    "sensum": (lay_sensum, ["data.category=softgel", "data.fold=2"]),
    "folder": (lay_folder, ["data.reader.mask_dir=masks"]),
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_experiment_trains_and_is_judged_on_its_official_layout(name, tmp_path):
    lay, words = LAYOUTS[name]
    root = lay(generated_sources(tmp_path / "sources"), tmp_path / "data")
    words = [*OTHER_LAYOUT, f"experiment=supersimplenet_{name}", f"data.root={root}", *words, "trainer.max_epochs=1"]
    if name == "sensum":  # has a size for each category
        words = [word.replace("data.size=", "data.size.softgel=") for word in words]
    result = train(tmp_path / "run", *words)
    expected = METRICS | DECISIONS if name == "folder" else METRICS
    assert set(result["metrics"]) == {f"test/{metric}" for metric in expected}
    assert all(np.isfinite(value) for value in result["metrics"].values())
    if name == "sensum":
        assert result["paper"]["metrics"] == {"test/auroc": 98.0, "test/aupro": 92.1}


def test_one_supervised_epoch_on_files_of_real_tiles(sample_data, tmp_path):
    root = lay_ksdd2(tile_sources(sample_data, 12), tmp_path / "data")
    words = [*OTHER_LAYOUT, "experiment=supersimplenet_ksdd2", f"data.root={root}", "trainer.max_epochs=1"]
    result = train(tmp_path / "run", *words)
    assert all(np.isfinite(value) for value in result["metrics"].values())


def test_magnetic_tiles_train_with_random_weights_and_finite_scores(sample_data, tmp_path):
    words = [*OTHER_LAYOUT, "experiment=supersimplenet_magnetic_tile", "trainer.max_epochs=1", "data.category=Blowhole"]
    result = train(tmp_path / "run", *words, f"data.root={sample_data}/magnetic_tile", "data.batch_size=16")
    assert all(np.isfinite(value) for value in result["metrics"].values())


def test_ones_own_folder_needs_no_masks_and_reports_what_cannot_be_judged(tmp_path):
    root = lay_folder(generated_sources(tmp_path / "sources"), tmp_path / "data")
    words = [*OTHER_LAYOUT, "experiment=supersimplenet_folder", f"data.root={root}", "trainer.max_epochs=1"]
    with pytest.warns(UserWarning, match="masks is there and not used"):
        result = train(tmp_path / "run", *words)
    assert set(result["metrics"]) == {f"test/{name}" for name in (METRICS | DECISIONS) - PIXELS}
    assert set(result["floors"]) == (METRICS | DECISIONS) - PIXELS
    assert all(np.isfinite(value) for value in result["metrics"].values())
    assert float(weights(tmp_path / "run")["thresholds"][0]) != 0  # images of both kinds were kept back
    shutil.rmtree(root / "abnormal")
    with pytest.warns(UserWarning, match="images are all normal"):
        alone = train(tmp_path / "alone", *words, "data.reader.abnormal_dir=null")
    assert np.isnan(alone["metrics"]["test/auroc"])  # and not 0


def test_no_anomalies_without_supervision_is_answered_before_anything_is_built(tmp_path):
    with pytest.raises(InputError, match="leaves nothing anomalous to learn from"):
        train(tmp_path / "run", *TINY, f"paths.data_dir={tmp_path}/data", "model.anomaly.strategy=none")


def test_speed_is_measured_where_it_is_asked_for(demo):
    root, result = demo
    assert not any(name.startswith("speed/") for name in result["metrics"])
    words = [f"callbacks.throughput.{word}" for word in ("cycles=1", "warm_up=0", "runs=1", "throughput_batch=2")]
    metrics = judge_here(checkpoint(root / "run"), root / "speed", *words, "callbacks.throughput.size=[64,64]")[
        "metrics"
    ]
    assert metrics["speed/ms"] > 0 and metrics["speed/images_per_second"] > 0
    assert metrics["test/auroc"] == result["metrics"]["test/auroc"]


def test_the_first_cycle_of_a_timing_is_dropped(monkeypatch):
    meter, logged = ThroughputMeter(3, 0, 1, 1, 16, [64, 64]), {}
    times = iter([9.0, 9.0, 0.1, 0.8, 0.3, 0.8])
    monkeypatch.setattr(meter, "seconds", lambda network, batch, device: next(times))
    module = torch.nn.Linear(1, 1)
    module.export_model = lambda: (torch.nn.Identity(), (), [], [], {})
    module.device, module.log_dict = torch.device("cpu"), logged.update
    meter.on_test_epoch_end(None, module)
    assert logged["speed/ms"] == pytest.approx(200) and logged["speed/images_per_second"] == pytest.approx(20)


# ---- slow ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(tmp_path):
    """SIGKILL in the middle of supervised training, through the doors."""
    words = [*TINY, f"paths.data_dir={tmp_path}/data", "trainer.max_epochs=12", "variant=supersimplenet_supervised"]
    code, output = run_door("train.py", *words, f"hydra.run.dir={tmp_path}/unbroken")
    assert code == 0, output
    expected = json.loads((tmp_path / "unbroken" / "result.json").read_text())["metrics"]
    process = start_door("train.py", *words, f"hydra.run.dir={tmp_path}/run")
    deadline = time.monotonic() + 180
    while not checkpoint(tmp_path / "run").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "run" / "result.json").exists()
    code, output = run_door("train.py", f"ckpt_path={tmp_path}/run", "trainer.enable_progress_bar=false")
    assert code == 0, output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["none", "supersimplenet_supervised"])
def test_two_processes_train_and_judge_every_image_once(tmp_path, variant):
    words = [word for word in TINY if word != "trainer=cpu"] + [f"variant={variant}", "data.reader.val_split=0.3"]
    run_dir = tmp_path / "run"
    words += [f"paths.data_dir={tmp_path}/data", "trainer=ddp_cpu", f"hydra.run.dir={run_dir}"]
    code, output = run_door("train.py", *words)
    assert code == 0, output
    result = json.loads((run_dir / "result.json").read_text())
    assert result["floors"]["ap"] == pytest.approx(400 / 7)  # all seven test images, none twice
    again = judge_here(checkpoint(run_dir), tmp_path / "eval")
    for name, value in result["metrics"].items():
        assert value == pytest.approx(again["metrics"][name], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_reaches_its_thresholds(tmp_path, seed):
    """What the experiment claims, at its own size."""
    words = [*QUIET, "experiment=supersimplenet_demo", UNDRAWN, f"seed={seed}", f"paths.data_dir={tmp_path}/data"]
    unsupervised = train(tmp_path / "unsupervised", *words)["metrics"]
    supervised = train(tmp_path / "supervised", *words, "variant=supersimplenet_supervised")["metrics"]
    untrained = train(tmp_path / "untrained", *words, "variant=supersimplenet_untrained")["metrics"]
    assert unsupervised["test/pixel_auroc"] >= 97 and unsupervised["test/seg_auroc"] >= 95
    assert supervised["test/pixel_auroc"] >= 97 and supervised["test/auroc"] >= 95
    assert untrained["test/seg_auroc"] <= unsupervised["test/seg_auroc"] - 10
