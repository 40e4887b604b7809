"""ISIM's stage, AffinityNet and the segmenter in one run, one of them alone, judged again, predicting."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from runs.building import check_config
from runs.composition import compose_config
from runs.errors import InputError
from runs.round_store import RoundStore
from runs.stages import resolve_stage, stages_of
from tests.toy.running import judge_here, train_here

TINY = [
    "trainer=cpu",
    "trainer.enable_progress_bar=false",
    "experiment=isim_shapes",
    "data.reader.train=16",
    "data.reader.val=4",
    "data.batch_size=8",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "callbacks.pseudo_label_refresh.schedule.first_at=1",
    "crf.steps=2",
    "cam.scales=[1.0]",
]
CAMS_OF_FINAL = "stages.final.callbacks.random_walk_masks.cams.checkpoint"
CAMS_OF_AFFINITY = "stages.affinity.callbacks.affinity_labels.cams.checkpoint"


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("chain")
    train_here(root / "run", *TINY, "only_stages=null", f"paths.data_dir={root}/data")
    return root


def masks(stage: Path, step: str):
    return RoundStore(stage / "rounds" / step).read(1)["mask"]


def logged(stage: Path, name: str) -> list[float]:
    with (stage / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("experiment", ["isim_voc12", "isim_coco128", "isim_shapes"])
def test_all_three_stages_build_and_the_first_alone_makes_pseudo_labels(experiment, tmp_path):
    words = [f"experiment={experiment}", "paths.run_dir=unused", "data.root=somewhere", "only_stages=null"]
    config = OmegaConf.to_container(compose_config(words))
    stages = stages_of(config, tmp_path)
    assert [stage.name for stage in stages] == ["isim", "affinity", "final"]
    for stage in stages:
        resolved = resolve_stage(config, stage)
        check_config(resolved)
        assert bool(resolved["callbacks"]["pseudo_label_refresh"]) == (stage.name == "isim")


@pytest.mark.parametrize("sweep", ["isim_table2", "isim_table6"])
def test_the_tables_of_the_class_maps_train_no_later_stage(sweep, tmp_path):
    words = ["experiment=isim_voc12", f"sweep={sweep}", "paths.run_dir=unused", "data.root=somewhere"]
    config = OmegaConf.to_container(compose_config(words))
    assert [stage.name for stage in stages_of(config, tmp_path)] == ["isim"]


def test_another_backbone_reaches_all_three_networks(tmp_path):
    words = ["experiment=isim_voc12", "variant=isim_resnet101", "only_stages=null", "data.root=x"]
    config = OmegaConf.to_container(compose_config([*words, "paths.run_dir=unused"]))
    for stage in stages_of(config, tmp_path):
        encoder = resolve_stage(config, stage)["model"]["network"]["encoder"]
        assert encoder["backbone"].startswith("resnet101")


def test_each_stage_leaves_what_the_next_one_needs(chain):
    run = chain / "run"
    labels, walked = masks(run / "affinity", "affinity_labels"), masks(run / "final", "random_walk_masks")
    assert labels.indices.tolist() == walked.indices.tolist() == list(range(16))
    values = set(np.unique(labels.stacked).tolist())
    assert 255 in values and values <= {0, 1, 2, 3, 255}
    assert set(np.unique(walked.stacked).tolist()) <= {0, 1, 2, 3}
    for name in ("seed", "walk", "walk_crf"):
        assert len(logged(run / "final", f"random_walk_masks/{name}_mean_iou")) == 1
    result = json.loads((run / "result.json").read_text())
    assert set(result["metrics"]) >= {"test/mean_iou", "test/mean_iou_foreground"}
    assert set(result["stages"]) == {"isim", "affinity", "final"}
    assert "test/balanced_pair_accuracy" in result["stages"]["affinity"]["metrics"]
    assert (run / "affinity" / "figures" / "affinity_labels_labels.png").is_file()
    assert (run / "final" / "figures" / "random_walk_masks_masks.png").is_file()


def test_one_stage_alone_takes_checkpoints_and_makes_the_same_masks(chain, tmp_path):
    done = chain / "run"
    train_here(
        tmp_path / "alone", *TINY, "only_stages=[final]", f"paths.data_dir={chain}/data",
        f"{CAMS_OF_FINAL}={done}/isim/checkpoints/last.ckpt",
        f"stages.final.callbacks.random_walk_masks.affinities.checkpoint={done}/affinity/checkpoints/last.ckpt",
        "trainer.max_epochs=1",
    )  # fmt: skip
    alone, chained = (masks(run / "final", "random_walk_masks").stacked for run in (tmp_path / "alone", done))
    assert np.array_equal(alone, chained)


def test_stage_without_its_checkpoint_is_one_sentence(chain, tmp_path):
    with pytest.raises(InputError, match="is the checkpoint of stage 'isim', which this run does not have"):
        train_here(tmp_path / "none", *TINY, "only_stages=[affinity]", f"paths.data_dir={chain}/data")


def test_stage_with_the_wrong_checkpoint_is_one_sentence(chain, tmp_path):
    wrong = chain / "run" / "final" / "checkpoints" / "last.ckpt"
    with pytest.raises(InputError, match=r"earlier stage cannot be used: .*final.*does not fit the network"):
        train_here(
            tmp_path / "wrong", *TINY, "only_stages=[affinity]", f"{CAMS_OF_AFFINITY}={wrong}",
            f"paths.data_dir={chain}/data",
        )  # fmt: skip


def test_checkpoints_alone_judge_again_and_predict_pictures(chain, tmp_path):
    run, data = chain / "run", f"paths.data_dir={chain}/data"
    final = run / "final" / "checkpoints" / "last.ckpt"
    judge_here(final, tmp_path / "eval", data)
    again = json.loads((tmp_path / "eval" / "result.json").read_text())["metrics"]
    before = json.loads((run / "final" / "result.json").read_text())["metrics"]
    assert again == pytest.approx(before)

    pictures = tmp_path / "mine" / "deep"
    pictures.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(pictures / "a.jpg")
    for stage, column in (("final", "mask"), ("affinity", "boundary")):
        checkpoint = run / stage / "checkpoints" / "last.ckpt"
        judge_here(
            checkpoint,
            tmp_path / stage,
            "mode=predict",
            f"data.predict_root={tmp_path}/mine",
            f"data.root={tmp_path}/no",
        )
        with (tmp_path / stage / "predictions.csv").open() as file:
            row = next(csv.DictReader(file))
        assert row["name"] == "deep/a.jpg"
        assert (tmp_path / stage / row[column]).is_file()
    assert Image.open(tmp_path / "final" / "predictions" / "mask" / "deep" / "a.png").size == (70, 50)
