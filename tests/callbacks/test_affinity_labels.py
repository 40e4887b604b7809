"""Affinity labels: the rule of the two CRFs, what is stored, and what a wrong checkpoint is answered with."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from callbacks.affinity_labels import AffinityLabels, certain_labels
from callbacks.iterative_step import Schedule
from callbacks.trained_network import TrainedNetwork
from components.cam import multi_scale_cam, normalised_cam
from components.dense_crf import refine_labels
from runs.errors import InputError
from tests.callbacks.second_stage_rounds import (
    CLASS_NAMES,
    CRF,
    IMAGE_MEAN,
    IMAGE_STD,
    ColourMaps,
    Images,
    datamodule,
    run_round,
    same_masks,
    write_checkpoint,
)

ONCE = Schedule(every_n_epochs=1, first_at=0, rounds_max=1)
SCALES = [1.0, 0.5]


def maker(tmp_path: Path, processes: int = 0, **changes):
    write_checkpoint(ColourMaps(), tmp_path / "cam.ckpt")

    def make(folder: Path) -> AffinityLabels:
        settings = {"sure_foreground": 0.3, "sure_background": 0.1, **changes}
        cams = TrainedNetwork(ColourMaps(), str(tmp_path / "cam.ckpt"), IMAGE_MEAN, IMAGE_STD)
        return AffinityLabels(ONCE, 1, str(folder), cams, SCALES, crf=CRF, processes=processes, **settings)

    return make


def test_rule_of_two_labellings_pixel_by_pixel():
    strict = torch.tensor([[1, 0, 0, 2], [0, 3, 0, 0]])
    wide = torch.tensor([[1, 1, 0, 1], [0, 0, 2, 0]])
    found = certain_labels(strict, wide)
    for y in range(2):
        for x in range(4):
            a, b = int(strict[y, x]), int(wide[y, x])
            assert int(found[y, x]) == (a if a > 0 else 0 if b == 0 else 255)


def test_labels_of_a_round_are_those_of_the_steps_by_hand(tmp_path):
    step, generation, metrics = run_round(maker(tmp_path), datamodule(5), tmp_path / "rounds")
    images, network = Images(5), ColourMaps().eval()
    assert generation.indices("mask").tolist() == [0, 1, 2, 3, 4]
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    kinds = np.zeros(3)
    for index in range(4):
        sample = images[index]
        image = (sample["image"].float() - mean) / std
        with torch.no_grad():
            classes = sample["label"].nonzero().flatten()
            cam = normalised_cam(multi_scale_cam(network.class_maps, image, SCALES), classes)
        pixels, n = sample["image"].permute(1, 2, 0), 1 + len(classes)
        seeds = [torch.cat([torch.full_like(cam[:1], plane), cam]).argmax(0) for plane in (0.3, 0.1)]
        strict, wide = (refine_labels(pixels, labels, n, CRF) for labels in seeds)
        expected = np.full(strict.shape, 255)
        expected[(strict == 0) & (wide == 0)] = 0
        for label, name in enumerate(classes.tolist(), start=1):
            expected[strict == label] = 1 + name
        assert set(np.unique(expected)) - {255} == {0, *(1 + classes).tolist()}
        assert np.array_equal(generation["mask"][index], expected)
        assert generation["mask"][index].dtype == np.uint8
        kinds += [(expected == 0).sum(), ((expected > 0) & (expected < 255)).sum(), (expected == 255).sum()]
    assert (generation["mask"][4] == 255).all(), "nobody knows what an image without label shows"
    kinds[2] += generation["mask"][4].size
    found = [metrics[f"{kind}_percent"] for kind in ("background", "foreground", "unsure")]
    assert found == pytest.approx(100 * kinds / kinds.sum())
    assert metrics["sure_mean_iou"] > 60
    assert set(step.figures()) == {"labels"}
    assert generation.settings["sure_foreground"] == 0.3 and generation.settings["crf"]["steps"] == 3


def test_two_processes_give_the_labels_of_one(tmp_path):
    _, one, metrics = run_round(maker(tmp_path), datamodule(7), tmp_path / "one")
    _, two, metrics_of_two = run_round(maker(tmp_path), datamodule(7), tmp_path / "two", processes=2)
    assert same_masks(one, two)
    assert metrics == metrics_of_two


def test_true_masks_change_no_label(tmp_path):
    _, scored, metrics = run_round(maker(tmp_path), datamodule(4), tmp_path / "a")
    _, blind, fewer = run_round(maker(tmp_path), datamodule(4, with_truth=False), tmp_path / "b")
    assert same_masks(scored, blind)
    assert set(metrics) - set(fewer) == {"sure_mean_iou"}


def test_planes_out_of_order_are_named(tmp_path):
    with pytest.raises(InputError, match=r"sure_background=0\.3 must be below \.sure_foreground=0\.1"):
        maker(tmp_path, sure_foreground=0.1, sure_background=0.3)(tmp_path)


class Still(pl.LightningModule):
    """Learns nothing, so that rounds can run around it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(pl.LightningDataModule):
    class_names = CLASS_NAMES

    def training_images(self) -> Images:
        return Images(3)

    def train_dataloader(self) -> DataLoader:
        return DataLoader([torch.zeros(1)])


def test_a_run_goes_on_with_the_scales_of_its_labels_alone(tmp_path):
    def fit(epochs: int, scales: list[float], **choices) -> pl.Trainer:
        step = maker(tmp_path)(tmp_path / "rounds")
        step.scales = scales
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", logger=False, max_epochs=epochs, callbacks=[step], **quiet)
        trainer.fit(Still(), datamodule=Data(), **choices)
        return trainer

    fit(1, SCALES).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="affinity_labels: scales changed since round 1 was made"):
        fit(2, [1.0], ckpt_path=tmp_path / "last.ckpt")
    fit(2, SCALES, ckpt_path=tmp_path / "last.ckpt")


def test_scales_without_sense_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cam\.scales=\[0\.0\] must be one positive factor or more"):
        AffinityLabels(ONCE, 1, str(tmp_path), None, [0.0], 0.3, 0.1, CRF, 0)


def test_missing_checkpoint_is_one_sentence(tmp_path):
    step = maker(tmp_path)(tmp_path / "rounds")
    for path, sentence in ((None, "set its checkpoint"), (str(tmp_path / "no.ckpt"), r"no weights file .*no\.ckpt")):
        step.cams = TrainedNetwork(ColourMaps(), path, IMAGE_MEAN, IMAGE_STD)
        with pytest.raises(InputError, match=sentence):
            step.cams.load(torch.device("cpu"))


def test_checkpoint_of_another_network_is_one_sentence(tmp_path):
    torch.save({"state_dict": {"network.encoder.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    cams = TrainedNetwork(ColourMaps(), str(tmp_path / "other.ckpt"), IMAGE_MEAN, IMAGE_STD)
    with pytest.raises(InputError, match=r"earlier stage cannot be used: .*other\.ckpt .*1 unexpected keys: encoder"):
        cams.load(torch.device("cpu"))


def test_file_without_a_network_is_one_sentence(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "bare.ckpt")
    cams = TrainedNetwork(ColourMaps(), str(tmp_path / "bare.ckpt"), IMAGE_MEAN, IMAGE_STD)
    with pytest.raises(InputError, match=r"6 missing keys: colours\.weight"):
        cams.load(torch.device("cpu"))
