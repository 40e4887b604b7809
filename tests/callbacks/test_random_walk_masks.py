"""Masks by random walk: what is stored, scored and left out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from callbacks.iterative_step import Schedule
from callbacks.random_walk_masks import RandomWalkMasks
from callbacks.trained_network import TrainedNetwork
from components.cam import multi_scale_cam, normalised_cam
from components.dense_crf import refine_labels
from components.random_walk import pair_distances, pair_offsets, walked_labels
from runs.errors import InputError
from tests.callbacks.second_stage_rounds import (
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
SCALES = [1.0]


class ColourAffinity(nn.Module):
    """Pixels are alike where their colours are, on a map of stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets = pair_offsets(5)
        self.gain = nn.Parameter(torch.tensor(1.0))

    def affinities(self, image: torch.Tensor) -> torch.Tensor:
        return torch.exp(-self.gain * pair_distances(nn.functional.avg_pool2d(image, 4), self.offsets))


def maker(tmp_path: Path, walk: bool = True, crf=CRF, processes: int = 0):
    write_checkpoint(ColourMaps(), tmp_path / "cam.ckpt")
    torch.save({"state_dict": {"network.gain": torch.tensor(2.0)}}, tmp_path / "affinity.ckpt")

    def make(folder: Path) -> RandomWalkMasks:
        cams = TrainedNetwork(ColourMaps(), str(tmp_path / "cam.ckpt"), IMAGE_MEAN, IMAGE_STD)
        affinities = TrainedNetwork(ColourAffinity(), str(tmp_path / "affinity.ckpt"), IMAGE_MEAN, IMAGE_STD)
        return RandomWalkMasks(
            ONCE, 1, str(folder), cams, affinities if walk else None, SCALES, threshold=0.3, beta=8, log2_steps=5,
            background_power=16, crf=crf, processes=processes,
        )  # fmt: skip

    return make


def by_hand(index: int, walk: bool, crf: bool) -> np.ndarray:
    sample = Images(6)[index]
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
    image = (sample["image"].float() - mean) / std
    with torch.no_grad():
        classes = sample["label"].nonzero().flatten()
        cam = normalised_cam(multi_scale_cam(ColourMaps().eval().class_maps, image, SCALES), classes)
        if walk:
            network = ColourAffinity()
            network.gain.data.fill_(2.0)
            affinity = network.affinities(image[None])[0]
            labels = walked_labels(cam, affinity, network.offsets, 8, 5, 16)
        else:
            labels = torch.cat([torch.full_like(cam[:1], 0.3), cam]).argmax(0)
        if crf:
            labels = refine_labels(sample["image"].permute(1, 2, 0), labels, 1 + len(classes), CRF)
    return np.array([0, *(1 + classes).tolist()])[labels.numpy()]


@pytest.mark.parametrize(("walk", "crf"), [(True, True), (True, False), (False, True), (False, False)])
def test_masks_of_a_round_are_those_of_the_steps_by_hand(walk, crf, tmp_path):
    step, generation, metrics = run_round(maker(tmp_path, walk, CRF if crf else None), datamodule(4), tmp_path / "r")
    for index in range(3):
        assert np.array_equal(generation["mask"][index], by_hand(index, walk, crf))
    assert set(np.unique(generation["mask"][1])) == {0, 2, 3}
    assert (generation["mask"][3] == 255).all(), "nobody knows what an image without label shows"
    names = ["seed", *(["walk"] if walk else []), *([("walk" if walk else "seed") + "_crf"] if crf else [])]
    assert list(metrics) == [f"{name}_mean_iou" for name in names]
    assert set(step.figures()) == {"masks"}


def test_scores_stand_for_seeds_walk_and_crf(tmp_path):
    _, _, metrics = run_round(maker(tmp_path), datamodule(6), tmp_path / "r")
    counts = np.zeros((4, 4))
    for index in range(5):
        labels = Images(6)[index]["score_mask"].numpy()
        predicted = by_hand(index, walk=True, crf=False)
        for true, said in zip(labels.ravel(), predicted.ravel(), strict=True):
            counts[true, said] += 1
    iou = np.diag(counts) / (counts.sum(0) + counts.sum(1) - np.diag(counts))
    assert metrics["walk_mean_iou"] == pytest.approx(100 * iou.mean(), rel=1e-5)


def test_two_processes_give_the_masks_of_one(tmp_path):
    _, one, metrics = run_round(maker(tmp_path), datamodule(7), tmp_path / "one")
    _, two, metrics_of_two = run_round(maker(tmp_path), datamodule(7), tmp_path / "two", processes=2)
    assert same_masks(one, two)
    assert metrics == metrics_of_two


def test_true_masks_change_no_mask(tmp_path):
    _, scored, _ = run_round(maker(tmp_path), datamodule(4), tmp_path / "a")
    _, blind, metrics = run_round(maker(tmp_path), datamodule(4, with_truth=False), tmp_path / "b")
    assert same_masks(scored, blind) and metrics == {}


def test_checkpoint_of_the_wrong_stage_is_one_sentence(tmp_path):
    step = maker(tmp_path)(tmp_path / "rounds")
    step.affinities.checkpoint = str(tmp_path / "cam.ckpt")
    with pytest.raises(InputError, match=r"cam\.ckpt does not fit the network: 6 unexpected keys: colours"):
        step.affinities.load(torch.device("cpu"))


def test_class_maps_that_cannot_be_made_are_named(tmp_path):
    for scales, threshold, sentence in (
        ([], 0.3, r"cam\.scales=\[\] must be one positive factor or more"),
        ([1.0], 1.2, r"cam\.threshold=1\.2 must be 0 or more and below 1"),
    ):
        with pytest.raises(InputError, match=sentence):
            RandomWalkMasks(ONCE, 1, str(tmp_path), None, None, scales, threshold, 8, 5, 16, CRF, 0)


def test_settings_name_what_the_masks_depend_on(tmp_path):
    walked, plain = maker(tmp_path)(tmp_path).settings(), maker(tmp_path, walk=False, crf=None)(tmp_path).settings()
    assert walked["walk"] == {"beta": 8, "log2_steps": 5, "background_power": 16} and walked["crf"]["steps"] == 3
    assert plain["walk"] is None and plain["crf"] is None
