"""The refresh of pseudo masks: when it runs, on what, and what the masks are."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from callbacks.iterative_step import Schedule
from callbacks.pseudo_label_refresh import PseudoLabelRefresh
from components.dense_crf import CRFSettings, refine_labels
from runs.building import build
from runs.composition import compose_config
from runs.errors import InputError

CRF = CRFSettings(3.0, 3.0, 50.0, 5.0, 10.0, 2, 0.7)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
NAMES = ["bird", "cat", "dog"]


class Images(torch.utils.data.Dataset):
    """Photographs of different sizes; the third has no label."""

    labels = ((1, 0, 0), (1, 1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1))

    def __init__(self, scored: bool) -> None:
        self.scored = scored

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        height, width = 12 + index, 15
        sample = {
            "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
            "label": torch.tensor(self.labels[index], dtype=torch.float32),
            "index": 10 + index,
            "name": f"image {index}",
        }
        if self.scored:
            sample["score_mask"] = torch.randint(0, 4, (height, width), generator=generator)
            sample["score_mask"][0] = 255
        return sample


class Data(pl.LightningDataModule):
    class_names = NAMES

    def __init__(self, scored: bool = True) -> None:
        super().__init__()
        self.images, self.seen = Images(scored), []
        self.rounds = None

    def use_rounds(self, step: str, rounds) -> None:
        self.rounds = rounds

    def training_images(self) -> Images:
        return self.images

    def train_dataloader(self) -> DataLoader:
        return DataLoader([torch.zeros(1)])


class Network(pl.LightningModule):
    """Its class maps are high everywhere for the class that comes last in each image; it notes how it was asked."""

    def __init__(self, losses: list[float] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses, self.asked = losses, []
        self.generations: list[int] = []

    def activation_maps(self, image: Tensor) -> Tensor:
        self.asked.append((self.training, image.dtype, tuple(image.shape)))
        generation = self.trainer.datamodule.rounds.generation
        self.generations.append(0 if generation is None else generation.number)
        maps = F.avg_pool2d(image.float()[None], 3, 1, 1)[0]  # red, green, blue for the three classes
        return maps + torch.tensor([0.0, 500.0, 1000.0]).view(3, 1, 1)

    def segment(self, image: Tensor) -> Tensor:
        return torch.zeros(image.shape[1:], dtype=torch.int64)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.weight.sum() + (self.losses[self.current_epoch] if self.losses else 0.0)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def refresh(folder, **changes) -> PseudoLabelRefresh:
    settings = {
        "schedule": Schedule(every_n_epochs=1),
        "seed": 0,
        "folder": str(folder),
        "mode": "schedule",
        "patience": 3,
        "scales": [1.0, 0.5],
        "threshold": 0.3,
        "crf": CRF,
        "processes": 0,
    }
    return PseudoLabelRefresh(**{**settings, **changes})


def fit(step: PseudoLabelRefresh, epochs: int, data: Data | None = None, losses: list[float] | None = None, **settings):
    module, data = Network(losses), data or Data()
    trainer = pl.Trainer(**QUIET, max_epochs=epochs, callbacks=[step], **settings)
    trainer.fit(module, datamodule=data)
    return module, data, trainer


# ---- when ------------------------------------------------------------------------------------------


def test_in_50_epochs_masks_are_made_after_5_15_25_35_and_45(tmp_path):
    """Trap 1: counted from 1, and more than once; the schedule is that of the experiment's config."""
    config = compose_config(["experiment=isim_voc12", "data.root=somewhere", "paths.run_dir=unused"])
    assert config.stages.isim.trainer.max_epochs == 50
    node = OmegaConf.to_container(config.callbacks.pseudo_label_refresh.schedule)
    step = refresh(tmp_path, schedule=build(node), crf=None)
    fit(step, 50)
    assert [record["at"] for record in step.history] == [5, 15, 25, 35, 45]
    assert step.rounds.generation.number == 5


def test_converge_makes_masks_again_when_the_loss_has_not_fallen_for_three_epochs(tmp_path):
    losses = [9.0, 8.0, 7.0, 6.0, 6.0, 6.5, 6.2, 3.0, 4.0, 2.0, 2.5, 2.5, 2.5, 2.5]
    step = refresh(tmp_path, schedule=Schedule(every_n_epochs=1, first_at=2), mode="converge", crf=None)
    fit(step, len(losses), losses=losses)
    made = [record["at"] for record in step.history if "masks" in record]
    # First after 2; best 6.0 (epoch 4), three epochs without better: after 7; best 2.0 (epoch 10): after 13.
    assert made == [2, 7, 13]


def test_the_losses_of_converge_are_part_of_the_checkpoint(tmp_path):
    step = refresh(tmp_path, mode="converge", schedule=Schedule(every_n_epochs=1, first_at=1), crf=None)
    _, _, trainer = fit(step, 4, losses=[3.0, 2.0, 2.5, 2.6])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["IterativeStep[pseudo_label_refresh]"]
    again = refresh(tmp_path / "other", mode="converge")
    again.load_state_dict(state)
    assert again.losses == [2.0, 2.5, pytest.approx(2.6)]


# ---- on what, and what -------------------------------------------------------------------------------


def test_maps_are_of_whole_images_in_eval_mode_and_of_images_with_labels_only(tmp_path):
    """Trap 2."""
    step = refresh(tmp_path, schedule=Schedule(every_n_epochs=1, rounds_max=1))
    module, data, _ = fit(step, 2)
    assert module.training
    shapes = [tuple(data.images[i]["image"].shape) for i in (0, 1, 3, 4)]
    assert module.asked == [(False, torch.uint8, shape) for shape in shapes]


def expected_masks(crf: CRFSettings | None) -> dict[int, np.ndarray]:
    """The loop of section 2.3, pixel by pixel."""
    masks = {}
    module = Network()
    module.trainer = type("T", (), {"datamodule": type("D", (), {"rounds": type("R", (), {"generation": None})})})
    for sample in (Images(False)[i] for i in range(5)):
        classes = [c for c in range(3) if sample["label"][c]]
        if not classes:
            continue
        maps = module.activation_maps(sample["image"])
        height, width = maps.shape[1:]
        seeds = torch.zeros(height, width, dtype=torch.int64)
        for y in range(height):
            for x in range(width):
                values = [float(maps[c, y, x] / (maps[c].max() + 1e-5)) for c in classes]
                if max(values) > 0.3:
                    seeds[y, x] = 1 + values.index(max(values))
        if crf is not None:
            seeds = refine_labels(sample["image"].permute(1, 2, 0).contiguous(), seeds, 1 + len(classes), crf)
        masks[sample["index"]] = np.array([0, *(c + 1 for c in classes)], np.uint8)[seeds.numpy()]
    return masks


@pytest.mark.parametrize(("crf", "processes"), [(CRF, 0), (CRF, 2), (None, 0)])
def test_masks_are_those_of_the_definition_whatever_the_number_of_workers(tmp_path, crf, processes):
    """Traps 3 and 4: class 3, whose maps are highest, labels nothing where it is not a true label."""
    step = refresh(tmp_path, schedule=Schedule(every_n_epochs=1, rounds_max=1), crf=crf, processes=processes)
    fit(step, 2)
    field, expected = step.rounds.generation["mask"], expected_masks(crf)
    assert field.indices.tolist() == sorted(expected) == [10, 11, 13, 14]
    for index, mask in expected.items():
        assert field[index].dtype == np.uint8
        assert np.array_equal(field[index], mask)


def test_the_crf_sees_background_and_the_true_classes_and_colours_of_0_to_255(tmp_path, monkeypatch):
    """Traps 5 and 6."""
    calls = []

    def spy(job):
        calls.append((job.image.dtype, int(job.image.max()), job.image.shape[2], job.n, int(job.labels.max())))
        return job.labels.astype(np.uint8)

    monkeypatch.setattr("components.dense_crf_pool.refine", spy)
    fit(refresh(tmp_path, schedule=Schedule(every_n_epochs=1, rounds_max=1)), 2)
    assert [call[3] for call in calls] == [2, 3, 2, 3]
    for dtype, brightest, channels, n, highest in calls:
        assert dtype == np.uint8 and brightest > 100 and channels == 3 and highest < n


def test_training_reads_the_old_masks_until_the_round_is_whole(tmp_path):
    """Trap 13."""
    module, _, _ = fit(refresh(tmp_path, crf=None), 4)
    assert module.generations == [0] * 4 + [1] * 4 + [2] * 4


def test_true_masks_are_only_scored_against_and_need_not_be_there(tmp_path):
    scored, unscored = (refresh(tmp_path / str(s), schedule=Schedule(every_n_epochs=1, rounds_max=1)) for s in (1, 0))
    fit(scored, 2, Data(scored=True))
    fit(unscored, 2, Data(scored=False))
    ours, theirs = (step.rounds.generation["mask"] for step in (scored, unscored))
    assert all(np.array_equal(ours[index], theirs[index]) for index in ours.indices)
    assert set(unscored.history[0]) >= {"masks", "with_foreground"} and "mask_mean_iou" not in unscored.history[0]
    truth, labels = [], []
    for sample in (Images(True)[i] for i in (0, 1, 3, 4)):
        kept = sample["score_mask"] != 255
        truth += sample["score_mask"][kept].tolist()
        labels += ours[sample["index"]][kept.numpy()].tolist()
    from sklearn.metrics import jaccard_score

    assert scored.history[0]["mask_mean_iou"] == pytest.approx(
        100 * jaccard_score(truth, labels, average="macro"), rel=1e-4
    )
    assert scored.history[0]["masks"] == 4


def test_each_round_has_a_picture_of_its_own(tmp_path):
    step = refresh(tmp_path)
    fit(step, 3)
    figures = step.figures()
    assert set(figures) == {"round_02", "mask_mean_iou"}
    captions = [ax.get_title() for ax in figures["round_02"].axes[:5]]
    assert captions == ["image 0", "seeds", "pseudo mask", "decoder", "truth"]
    assert figures["mask_mean_iou"].axes[0].lines[0].get_xdata().tolist() == [1, 2]


def test_the_settings_that_masks_depend_on_are_kept_with_them(tmp_path):
    step = refresh(tmp_path, schedule=Schedule(every_n_epochs=1, rounds_max=1))
    fit(step, 2)
    assert step.rounds.generation.settings["threshold"] == 0.3
    assert step.rounds.generation.settings["crf"]["steps"] == 2


def test_a_run_goes_on_with_the_scales_of_its_masks_alone(tmp_path):
    _, _, trainer = fit(refresh(tmp_path / "rounds", crf=None), 2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    def resume(scales: list[float]) -> PseudoLabelRefresh:
        step = refresh(tmp_path / "rounds", crf=None, scales=scales)
        trainer = pl.Trainer(**QUIET, max_epochs=3, callbacks=[step])
        trainer.fit(Network(), datamodule=Data(), ckpt_path=tmp_path / "last.ckpt")
        return step

    with pytest.raises(InputError, match="pseudo_label_refresh: scales changed since round"):
        resume([1.0])
    assert resume([1.0, 0.5]).rounds.generation.number == 2


def test_the_scales_that_are_kept_are_those_of_the_module():
    words = ["experiment=isim_voc12", "data.root=somewhere", "paths.run_dir=unused", "cam.scales=[1.0, 0.7]"]
    config = compose_config(words)
    assert config.callbacks.pseudo_label_refresh.scales == config.model.cam_scales == [1.0, 0.7]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scales": []}, r"cam\.scales=\[\] must be one positive factor or more"),
        ({"threshold": 1.0}, r"threshold=1\.0 must be 0 or more and below 1"),
        ({"patience": 0}, r"patience=0 must be 1 or more"),
        ({"processes": -1}, r"processes=-1 0 or more"),
    ],
)
def test_settings_without_sense_are_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        refresh(tmp_path, **changes)
