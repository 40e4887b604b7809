"""The dense CRF against the sums it stands for, reference pictures, and its two traps."""

import numpy as np
import pytest
import torch
from PIL import Image

from components.dense_crf import CRFSettings, DenseCRF, Lattice, label_unary, refine_labels
from components.dense_crf_pool import CRFJob, CRFPool, refine
from runs.errors import InputError

# ISIM's, as in conf/model/isim.yaml
SETTINGS = CRFSettings(3, 3, 50, 5, 10, 10, 0.7)


def gaussian_kernel(features: torch.Tensor) -> torch.Tensor:
    """K_ij = exp(-||f_i - f_j||^2 / 2) for all pairs, features (d, N)."""
    return torch.exp(-0.5 * torch.cdist(features.T.double(), features.T.double()) ** 2)


def brute_force(image: torch.Tensor, labels: torch.Tensor, n: int, settings: CRFSettings) -> torch.Tensor:
    """Mean field with the whole N x N matrices, all n labels, written from the equations."""
    height, width = labels.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([x, y]).view(2, -1)
    rgb = image.reshape(-1, 3).T
    total = torch.zeros(height * width, height * width, dtype=torch.float64)
    for weight, features in (
        (settings.spatial_weight, xy / settings.spatial_sigma),
        (
            settings.bilateral_weight,
            torch.cat([xy / settings.bilateral_sigma_xy, rgb / settings.bilateral_sigma_rgb]),
        ),
    ):
        kernel = gaussian_kernel(features)
        root = kernel.sum(1).rsqrt()
        total += weight * root[:, None] * kernel * root
    unary = torch.empty(n, height * width, dtype=torch.float64)
    for label in range(n):
        wrong = -np.log((1 - settings.confidence) / (n - 1))
        unary[label] = torch.where(labels.flatten() == label, -np.log(settings.confidence), wrong)
    q = (-unary).softmax(0)
    for _ in range(settings.steps):
        q = (q @ total - unary).softmax(0)
    return q.view(n, height, width)


def scene(height: int, width: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy photograph of n - 1 flat discs, seeds that cover a part of each, and the discs."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = np.tile([90.0, 120, 70], (height, width, 1)) + 20 * np.sin(x / 9)[..., None]
    seeds, truth = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
    for label in range(1, n):
        cy, cx = generator.uniform([0.25 * height, 0.25 * width], [0.75 * height, 0.75 * width])
        square = (y - cy) ** 2 + (x - cx) ** 2
        image[square < (0.22 * height) ** 2] = generator.uniform(0, 255, 3)
        truth[square < (0.22 * height) ** 2] = label
        seeds[square < (0.16 * height) ** 2] = label
    image = (image + generator.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(image), torch.from_numpy(seeds), torch.from_numpy(truth)


@pytest.mark.parametrize("d", [2, 5])
def test_lattice_averages_as_the_gaussian_over_all_pairs_does(d):
    """Its sums lose what would lie on vertices without a point; averages, which divide by the row sums, do not."""
    features = 4 * torch.rand(d, 1500, generator=torch.Generator().manual_seed(d))
    values = (features[0] > 2).float() + features[1:2] / 4  # a step and a slope
    exact = gaussian_kernel(features).float() @ values.T
    exact /= gaussian_kernel(features).float().sum(1, keepdim=True)
    lattice = Lattice(features)
    found = lattice(values.T.contiguous()) / lattice(torch.ones(1500, 1))
    assert (found - exact).abs().mean() < 0.05 * (values.max() - values.min())
    assert np.corrcoef(found.flatten(), exact.flatten())[0, 1] > 0.98


def test_lattice_filters_several_columns_as_each_alone():
    features = 3 * torch.rand(5, 400, generator=torch.Generator().manual_seed(1))
    lattice = Lattice(features)
    values = torch.rand(400, 6, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([lattice(column) for column in values.split(1, dim=1)], dim=1)
    torch.testing.assert_close(lattice(values), alone)


def test_normalised_kernel_is_symmetric_in_its_row_sums():
    """<1, K v> = <K 1, v> for a symmetric K; the blur along axes in turn keeps that to a few percent."""
    lattice = Lattice(3 * torch.rand(5, 500, generator=torch.Generator().manual_seed(3)))
    lattice.normalise(1.0)
    v = torch.rand(500, 1, generator=torch.Generator().manual_seed(4))
    ones = torch.ones_like(v)
    assert float((lattice(v) * ones).sum() / (lattice(ones) * v).sum()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("n", "seed"), [(2, 0), (3, 1), (4, 2)])
def test_labels_agree_with_all_pairs_mean_field(n, seed):
    image, seeds, _ = scene(56, 72, n, seed)
    exact = brute_force(image, seeds, n, SETTINGS).argmax(0)
    found = refine_labels(image, seeds, n, SETTINGS)
    assert (exact != seeds).float().mean() > 0.02, "the CRF has something to do"
    assert (found == exact).float().mean() >= 0.95


def test_probabilities_sum_to_one_and_follow_all_pairs():
    image, seeds, _ = scene(40, 48, 3, 5)
    found = DenseCRF(image, SETTINGS)(label_unary(seeds, 3, 0.7))
    torch.testing.assert_close(found.sum(0), torch.ones(40, 48))
    assert (found - brute_force(image, seeds, 3, SETTINGS)).abs().mean() < 0.05


@pytest.mark.parametrize("n", [2, 3])
def test_mixed_precision_around_it_changes_nothing(n):
    image, seeds, _ = scene(40, 48, n, 6)
    plain = refine_labels(image, seeds, n, SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = refine_labels(image, seeds, n, SETTINGS)
    assert torch.equal(mixed, plain) and not torch.equal(plain, seeds)


def test_seeds_grow_over_flat_colour():
    image, seeds, truth = scene(56, 72, 3, 4)
    refined = refine_labels(image, seeds, 3, SETTINGS)
    assert (refined == truth).float().mean() > (seeds == truth).float().mean() + 0.02


REFERENCE = ["042", "061", "073", "074", "081", "110", "165", "257"]


@pytest.mark.parametrize("name", REFERENCE)
def test_reference_pictures_of_the_authors_crf(name, sample_data):
    root = sample_data / "coco128_voc"
    image = np.array(Image.open(root / f"VOCdevkit/VOC2012/JPEGImages/000000000{name}.jpg").convert("RGB"))
    seed, expected = (
        np.array(Image.open(root / f"crf_reference/000000000{name}_{kind}.png")) for kind in ("seed", "crf")
    )
    classes, labels = np.unique(seed, return_inverse=True)
    labels = torch.from_numpy(labels.reshape(seed.shape))
    refined = refine_labels(torch.from_numpy(image), labels, len(classes), SETTINGS)
    assert (seed != expected).mean() > 0.01
    assert (classes[refined.numpy()] == expected).mean() >= 0.999


def test_energies_are_those_of_the_equation():
    labels = torch.tensor([[0, 1], [2, 1]])
    unary = label_unary(labels, 3, 0.7)
    for label in range(3):
        for y in range(2):
            for x in range(2):
                p = 0.7 if labels[y, x] == label else 0.3 / 2
                assert float(unary[label, y, x]) == pytest.approx(-np.log(p), rel=1e-6)


def test_number_of_labels_decides_the_energy_gap():
    """With 21 labels for 2 the same seeds are held so much faster that the result is another."""
    image, seeds, _ = scene(56, 72, 2, 8)
    few = refine_labels(image, seeds, 2, SETTINGS)
    gaps = [float(label_unary(seeds, n, 0.7).amax() - label_unary(seeds, n, 0.7).amin()) for n in (2, 21)]
    assert gaps == pytest.approx([np.log(0.7 / 0.3), np.log(0.7 / (0.3 / 20))], rel=1e-5)
    assert (refine_labels(image, seeds, 21, SETTINGS) != few).any()


def test_one_label_is_left_as_it_is():
    image, seeds, _ = scene(20, 24, 1, 0)
    assert refine_labels(image, seeds, 1, SETTINGS) is seeds
    torch.testing.assert_close(DenseCRF(image, SETTINGS)(torch.rand(1, 20, 24)), torch.ones(1, 20, 24))


def test_colours_of_zero_to_one_are_refused():
    image, seeds, _ = scene(20, 24, 2, 0)
    with pytest.raises(InputError, match=r"uint8 colours 0\.\.255, not torch\.float32"):
        refine_labels(image / 255, seeds, 2, SETTINGS)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda image, seeds: (image.permute(2, 0, 1), seeds, 2), r"shape \(height, width, 3\), not \(3, 20, 24\)"),
        (lambda image, seeds: (image, seeds[:, :-1], 2), "20 x 24 pixels got energies of 20 x 23"),
        (lambda image, seeds: (image, seeds + 1, 2), r"labels 1\.\.2 given to a dense CRF of 2 labels"),
    ],
)
def test_what_does_not_fit_is_named(change, sentence):
    image, seeds, _ = scene(20, 24, 2, 0)
    with pytest.raises(InputError, match=sentence):
        refine_labels(*change(image, seeds), SETTINGS)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("bilateral_sigma_rgb", 0, "bilateral_sigma_rgb above 0"),
        ("confidence", 1.0, "confidence between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(key, value, sentence):
    with pytest.raises(InputError, match=sentence):
        CRFSettings(**{**vars(SETTINGS), key: value})


def test_confidence_below_an_even_guess_is_named():
    with pytest.raises(InputError, match=r"confidence 0\.4 of 2 labels: give a value between 0\.50 and 1"):
        label_unary(torch.zeros(2, 2, dtype=torch.long), 2, 0.4)


def test_a_kernel_of_weight_zero_is_left_out():
    image, seeds, _ = scene(24, 32, 2, 3)
    plain = CRFSettings(**{**vars(SETTINGS), "bilateral_weight": 0, "spatial_weight": 0})
    assert torch.equal(refine_labels(image, seeds, 2, plain), seeds)


def jobs(count: int) -> list[CRFJob]:
    made = []
    for seed in range(count):
        n = 2 + seed % 2
        image, seeds, truth = scene(30 + seed, 40, n, seed)
        made.append(CRFJob(image.numpy(), np.stack([seeds.numpy(), truth.numpy()]), n, SETTINGS))
    return made


def test_pool_gives_the_same_labels_in_order_with_any_number_of_processes():
    made = jobs(11)
    expected = [refine(job) for job in made]
    for processes in (0, 2):
        with CRFPool(processes) as pool:
            found = list(pool.refine_many(iter(made)))
        assert len(found) == len(expected)
        assert all(np.array_equal(a, b) and a.dtype == np.uint8 for a, b in zip(found, expected, strict=True))


def test_pool_draws_jobs_only_as_there_is_room_and_hands_on_the_sentence_of_one():
    drawn, broken = [], jobs(1)[0]._replace(labels=np.full((1, 30, 40), 7))
    with CRFPool(1) as pool:
        results = pool.refine_many(drawn.append(job.n) or job for job in jobs(9))
        next(results)
        assert len(drawn) == 4
        assert len(list(results)) == 8
        with pytest.raises(InputError, match=r"labels 7\.\.7"):
            list(pool.refine_many([broken]))


def test_job_without_a_class_or_without_a_crf_is_left_as_it_is():
    job = jobs(1)[0]
    assert not refine(job._replace(n=1, labels=np.zeros((2, 30, 40), np.int64))).any()
    assert np.array_equal(refine(job._replace(settings=None)), job.labels)


def test_fewer_than_no_processes_are_refused():
    with pytest.raises(InputError, match="-1 CRF processes"):
        CRFPool(-1)
