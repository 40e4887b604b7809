"""The plain segmenter: what its loss counts, what it logs, shows and writes."""

import functools

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import jaccard_score
from torch.utils.data import DataLoader

from components.deeplab import DeepLabV3Head
from components.encoders import SmallEncoder
from components.voc import PALETTE
from lightning_modules.segmenter import Segmenter, SegmenterModule

CLASSES = 2
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def module(**changes) -> SegmenterModule:
    torch.manual_seed(0)
    head = functools.partial(DeepLabV3Head, width=8, rates=[1, 2], dropout=0.0)
    network = Segmenter(SmallEncoder([4, 6, 8, 10], [2, 2, 2, 1]), head, CLASSES)
    settings = {
        "lr_encoder": 0.02,
        "lr_head": 0.1,
        "poly_power": 0.9,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        **changes,
    }
    return SegmenterModule(network, functools.partial(torch.optim.SGD, momentum=0.9), CLASSES, **settings)


def scenes(count: int, ignored: bool = False) -> list[dict]:
    """Squares of one of two colours on a dark ground."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        y, x = generator.integers(4, 20, 2)
        image, mask = np.full((3, 48, 48), 40), np.zeros((48, 48), np.int64)
        image[index % 2, y : y + 22, x : x + 22] = 220
        mask[y : y + 22, x : x + 22] = 1 + index % 2
        image = (image + generator.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
        truth = torch.from_numpy(mask.copy())
        if ignored:
            mask[:6] = 255
        common = {"image": torch.from_numpy(image), "index": index, "name": f"folder/{index}.jpg"}
        made.append({**common, "pseudo_mask": torch.from_numpy(mask), "score_mask": truth})
    return made


def batch_of(count: int, **choices) -> dict:
    return next(iter(DataLoader(scenes(count, **choices), batch_size=count)))


def test_loss_is_the_mean_over_the_pixels_that_are_known():
    learner, batch = module(), batch_of(2, ignored=True)
    learner.log = lambda *_, **__: None
    loss = float(learner.training_step(batch, 0))
    probabilities = learner(batch["image"]).softmax(1).detach()
    terms = [
        -np.log(float(probabilities[b, int(label), y, x]))
        for b in range(2)
        for y, row in enumerate(batch["pseudo_mask"][b])
        for x, label in enumerate(row)
        if label != 255
    ]
    assert len(terms) == 2 * 42 * 48
    assert loss == pytest.approx(np.mean(terms), rel=1e-4)


def test_pixels_that_are_ignored_send_no_gradient():
    learner, batch = module(), batch_of(2, ignored=True)
    logits = torch.randn(2, CLASSES + 1, 48, 48, requires_grad=True)
    learner.log, learner.forward = lambda *_, **__: None, lambda _: logits
    learner.training_step(batch, 0).backward()
    assert not logits.grad[:, :, :6].any()
    assert logits.grad[:, :, 6:].ne(0).all()


def test_batch_without_a_known_pixel_teaches_nothing():
    learner, batch = module(), batch_of(2)
    learner.log = lambda *_, **__: None
    batch["pseudo_mask"][:] = 255
    loss = learner.training_step(batch, 0)
    loss.backward()
    assert float(loss) == 0
    assert not any(p.grad.any() for p in learner.parameters() if p.grad is not None)


def test_it_learns_and_is_scored_as_by_sklearn_beside_all_background():
    learner = module()
    trainer = pl.Trainer(**QUIET, max_epochs=80, log_every_n_steps=1)
    trainer.fit(learner, DataLoader(scenes(16), batch_size=8))
    judged = scenes(20)[16:]
    loader = DataLoader(judged, batch_size=1)
    scores = {k: v for part in trainer.test(learner, [loader, loader], verbose=False) for k, v in part.items()}
    with torch.no_grad():
        predicted = torch.cat([learner.eval()(s["image"][None]).argmax(1) for s in judged]).flatten()
    truth = torch.stack([s["score_mask"] for s in judged]).flatten()
    iou = 100 * jaccard_score(truth, predicted, average=None)
    assert scores["test/mean_iou"] == pytest.approx(iou.mean(), rel=1e-4)
    assert scores["test/mean_iou_foreground"] == pytest.approx(iou[1:].mean(), rel=1e-4)
    floor = 100 * jaccard_score(truth, torch.zeros_like(truth), average=None, zero_division=0)
    assert scores["floor/mean_iou"] == pytest.approx(floor.mean(), rel=1e-4)
    assert scores["test/mean_iou"] > 70 and scores["test/train_mean_iou"] == scores["test/mean_iou"]
    assert set(learner.figures("test")) == {"segmentations"}


def test_rates_are_of_two_parts_and_fall_polynomially_to_nothing():
    learner, rates = module(), []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    pl.Trainer(**QUIET, max_epochs=2, callbacks=[Watch()]).fit(learner, DataLoader(scenes(8), batch_size=4))
    for step, (encoder, head) in enumerate(rates):
        factor = (1 - step / 4) ** 0.9
        assert (encoder, head) == pytest.approx((0.02 * factor, 0.1 * factor))


def test_resumed_run_with_more_epochs_goes_on_learning(tmp_path):
    loader, rates = DataLoader(scenes(8), batch_size=4), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = pl.Trainer(**QUIET, max_epochs=2)
    trainer.fit(module(), loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    pl.Trainer(**QUIET, max_epochs=4, callbacks=[Watch()]).fit(module(), loader, ckpt_path=tmp_path / "last.ckpt")
    assert rates == pytest.approx([0.02 * (1 - step / 8) ** 0.9 for step in (5, 6, 7, 8)])


def test_prediction_is_a_palette_picture_an_overlay_and_the_classes_by_name():
    learner = module().eval()

    class Trainer:
        datamodule = type("Data", (), {"class_names": ["red", "green"]})

    learner._trainer = Trainer
    image = torch.randint(0, 256, (1, 3, 37, 50)).byte()
    with torch.no_grad():
        labels = learner(image).argmax(1)[0].numpy()
        row = learner.predict_step({"image": image, "name": ["a/b.jpg"]}, 0)[0]
    assert row["name"] == "a/b.jpg"
    assert row["mask"].mode == "P" and np.array_equal(np.array(row["mask"]), labels)
    assert row["mask"].getpalette()[:9] == PALETTE[:3].flatten().tolist()
    assert row["overlay"].size == (50, 37)
    assert row["classes"] == "; ".join(["red", "green"][v - 1] for v in np.unique(labels) if v)
