"""AffinityNet's equations against double loops, its module's learning, scores and sentences."""

import functools
import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor
from torch.utils.data import DataLoader

from components.encoders import SmallEncoder
from components.random_walk import pair_offsets
from lightning_modules.affinity_net import AffinityNetModule, AffinityNetwork
from lightning_modules.affinity_net.losses import affinity_losses, pair_labels
from lightning_modules.affinity_net.module import boundaries, on_map
from lightning_modules.affinity_net.scores import PairScores
from runs.errors import InputError

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def network(radius: float = 3, distance: str = "mean", **changes) -> AffinityNetwork:
    torch.manual_seed(0)
    encoder = SmallEncoder([4, 6, 8, 10], [2, 2, 2, 1])
    settings = {"stages": [1, 2, 3], "widths": [4, 6, 8], "stride": 4, **changes}
    return AffinityNetwork(encoder, radius=radius, distance=distance, **settings)


def module(**changes) -> AffinityNetModule:
    settings = {
        "weight_background": 0.25,
        "weight_foreground": 0.25,
        "weight_different": 0.5,
        "lr_encoder": 0.1,
        "lr_new": 1.0,
        "poly_power": 0.9,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        **changes,
    }
    optimizer = functools.partial(torch.optim.SGD, momentum=0.0, weight_decay=0.0)
    return AffinityNetModule(network(), optimizer, **settings)


def loop_losses(features: Tensor, mask: Tensor, radius: float) -> list[float]:
    """Eq. 3 to 6 over every two pixels of every image, each pair once."""
    terms: list[list[float]] = [[], [], []]
    batch, _, height, width = features.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    for b in range(batch):
        for first, (y, x) in enumerate(places):
            for v, u in places[first + 1 :]:
                if (y - v) ** 2 + (x - u) ** 2 >= radius**2:
                    continue
                here, there = int(mask[b, y, x]), int(mask[b, v, u])
                if 255 in (here, there):
                    continue
                w = math.exp(-float((features[b, :, y, x] - features[b, :, v, u]).abs().sum()))
                if here != there:
                    terms[2].append(-math.log(1 - w))
                else:
                    terms[0 if here == 0 else 1].append(-math.log(w))
    return [float(np.mean(kind)) if kind else 0.0 for kind in terms]


def test_losses_are_the_means_over_all_pairs_of_a_kind():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 4, 6, 7, generator=generator)
    mask = torch.tensor([0, 0, 1, 3, 255])[torch.randint(5, (2, 6, 7), generator=generator)]
    offsets = pair_offsets(3)
    distance = torch.stack([(features - features.roll((-y, -x), (2, 3))).abs().sum(1) for y, x in offsets], dim=1)
    found = [float(loss) for loss in affinity_losses(distance, pair_labels(mask, offsets))]
    assert found == pytest.approx(loop_losses(features, mask, 3), rel=1e-3)


def test_pairs_with_an_unknown_pixel_are_of_no_kind():
    mask = torch.full((1, 5, 5), 255)
    mask[0, 2, 2] = 1
    assert not torch.stack(pair_labels(mask, pair_offsets(3))).any()


def test_batch_without_pairs_of_a_kind_has_a_finite_loss_and_gradient():
    distance = torch.rand(1, len(pair_offsets(3)), 5, 5, requires_grad=True)
    losses = affinity_losses(distance, pair_labels(torch.full((1, 5, 5), 255), pair_offsets(3)))
    assert [float(loss) for loss in losses] == [0, 0, 0]
    sum(losses).backward()
    assert not distance.grad.any()


def test_equal_features_of_different_classes_cost_a_finite_amount():
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[..., 2:] = 1
    distance = torch.zeros(1, len(pair_offsets(2)), 4, 4, requires_grad=True)
    different = affinity_losses(distance, pair_labels(mask, pair_offsets(2)))[2]
    different.backward()
    assert float(different) == pytest.approx(-math.log(1e-5))
    assert distance.grad.isfinite().all()


def test_affinity_is_one_for_equal_pixels_and_falls_with_the_distance():
    net, image = network(distance="sum").eval(), torch.rand(1, 3, 32, 40)
    net.mix.weight.data *= 0.1  # features near enough for affinities that are not 0
    features, affinity = net(image), net.affinities(image)
    assert features.shape == (1, 18, 8, 10) and affinity.shape == (1, len(net.offsets), 8, 10)
    place = net.offsets.index((1, 1))
    expected = math.exp(-float((features[0, :, 2, 3] - features[0, :, 3, 4]).abs().sum()))
    assert float(affinity[0, place, 2, 3]) == pytest.approx(expected, rel=1e-4)


def test_mean_distance_is_the_sum_over_the_channels():
    image = torch.rand(1, 3, 32, 32)
    whole, mean = network(distance="sum").eval(), network().eval()
    torch.testing.assert_close(whole.distances(image) / 18, mean.distances(image))


def test_mask_on_the_map_is_that_of_the_cells_centres():
    mask = torch.randint(0, 21, (1, 32, 48), generator=torch.Generator().manual_seed(0))
    found = on_map(mask, torch.zeros(1, 1, 8, 12))
    for y in range(8):
        for x in range(12):
            assert found[0, y, x] == mask[0, 4 * y + 2, 4 * x + 2]


def test_boundaries_are_where_the_affinity_is_low():
    offsets = pair_offsets(2)
    maps = torch.zeros(1, 1, 6, 8)
    maps[..., 4:] = 9.0
    distance = torch.stack([(maps - maps.roll((-y, -x), (2, 3))).abs().sum(1) for y, x in offsets], dim=1)
    edge = boundaries(torch.exp(-distance), offsets)[0]
    assert float(edge[:, :2].max()) < 0.01 and float(edge[1:5, 3].min()) > 0.3


def test_scores_are_those_of_sklearn_beside_the_best_constant_answer():
    generator = torch.Generator().manual_seed(1)
    offsets = pair_offsets(3)
    mask = torch.tensor([0, 0, 0, 1, 255])[torch.randint(5, (1, 9, 9), generator=generator)]
    affinity = torch.rand(1, len(offsets), 9, 9, generator=generator)
    labels = pair_labels(mask, offsets)
    known = torch.stack(labels).any(0)
    truth, said = (labels.background | labels.foreground)[known], affinity[known] >= 0.5
    scores = PairScores()
    scores.update(affinity, labels)
    found = {name: float(value) for name, value in scores.compute().items()}
    assert found["pair_accuracy"] == pytest.approx(100 * accuracy_score(truth, said), rel=1e-5)
    assert found["balanced_pair_accuracy"] == pytest.approx(100 * balanced_accuracy_score(truth, said), rel=1e-5)
    share = float(truth.float().mean())
    assert found["floor_pair_accuracy"] == pytest.approx(100 * max(share, 1 - share), rel=1e-5)
    assert found["floor_balanced_pair_accuracy"] == 50


def scenes(count: int) -> list[dict]:
    """Bright squares on a dark ground, with masks."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        y, x = generator.integers(4, 20, 2)
        image, mask = np.full((3, 48, 48), 40), np.zeros((48, 48), np.int64)
        image[:, y : y + 22, x : x + 22], mask[y : y + 22, x : x + 22] = 200, 1
        image = (image + generator.normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8)
        common = {"image": torch.from_numpy(image), "index": index, "name": str(index)}
        made.append({**common, "pseudo_mask": torch.from_numpy(mask), "score_mask": torch.from_numpy(mask)})
    return made


def test_training_tells_pairs_apart_far_better_than_a_constant_answer():
    learner, data = module(), scenes(16)
    trainer = pl.Trainer(**QUIET, max_epochs=30, log_every_n_steps=1)
    trainer.fit(learner, DataLoader(data, batch_size=8))
    judged = DataLoader(scenes(24)[16:], batch_size=1)
    result = trainer.test(learner, [judged, judged], verbose=False)
    scores = {key: value for part in result for key, value in part.items()}
    assert scores["test/balanced_pair_accuracy"] > 80 > scores["floor/balanced_pair_accuracy"] == 50
    assert "floor/train_pair_accuracy" in scores
    assert set(learner.figures("test")) == {"boundaries"}


def test_rates_are_of_two_parts_and_fall_polynomially_to_nothing():
    learner = module()
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    pl.Trainer(**QUIET, max_epochs=2, callbacks=[Watch()]).fit(learner, DataLoader(scenes(8), batch_size=4))
    for step, (encoder, new) in enumerate(rates):
        factor = (1 - step / 4) ** 0.9
        assert (encoder, new) == pytest.approx((0.1 * factor, factor))
    groups = learner.configure_optimizers()["optimizer"].param_groups
    learnt = {id(p) for group in groups for p in group["params"]}
    assert learnt == {id(p) for p in learner.network.parameters()}


def test_resumed_run_with_more_epochs_goes_on_learning(tmp_path):
    loader, rates = DataLoader(scenes(8), batch_size=4), []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = pl.Trainer(**QUIET, max_epochs=2)
    trainer.fit(module(), loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    pl.Trainer(**QUIET, max_epochs=4, callbacks=[Watch()]).fit(module(), loader, ckpt_path=tmp_path / "last.ckpt")
    assert rates == pytest.approx([0.1 * (1 - step / 8) ** 0.9 for step in (5, 6, 7, 8)])


def test_loss_weighs_the_three_kinds_as_in_the_equation():
    learner = module()
    learner.log = lambda *_, **__: None
    batch = {key: torch.stack([s[key] for s in scenes(3)]) for key in ("image", "pseudo_mask")}
    loss = learner.training_step(batch, 0)
    distance = learner.network.distances(learner.normalise(batch["image"]))
    kinds = affinity_losses(distance, pair_labels(on_map(batch["pseudo_mask"], distance), learner.network.offsets))
    expected = 0.25 * kinds[0] + 0.25 * kinds[1] + 0.5 * kinds[2]
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_prediction_is_a_map_of_the_boundaries_at_the_size_of_the_image():
    learner = module().eval()
    with torch.no_grad():
        rows = learner.predict_step({"image": torch.randint(0, 256, (1, 3, 37, 50)).byte(), "name": ["a/b.jpg"]}, 0)
    assert rows[0]["name"] == "a/b.jpg" and rows[0]["boundary"].shape == (37, 50)
    assert 0 <= rows[0]["boundary"].min() <= rows[0]["boundary"].max() <= 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stages": [2, 3, 4]}, r"network\.stages=\[2, 3, 4\].* stages from 0 to 3"),
        ({"widths": [4, 6]}, "give one width for each stage"),
        ({"stride": 16}, r"network\.stride=16: the encoder's maps have the strides \[2, 4, 8, 8\]"),
    ],
)
def test_network_that_does_not_fit_the_encoder_is_named(change, sentence):
    with pytest.raises(InputError, match=sentence):
        network(**change)
