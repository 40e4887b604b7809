"""Region scores against the benchmark's own files, and against loops over pixels and pixel pairs."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.io import loadmat
from skimage.metrics import variation_of_information
from sklearn.metrics import rand_score
from torch.nn import functional as F

from components.metrics import regions
from components.metrics.regions import (
    SCORES,
    BoundaryDisplacementError,
    GlobalConsistencyError,
    HumanMaps,
    ProbabilisticRandIndex,
    RegionBenchmark,
    RegionScores,
    SegmentationCovering,
    VariationOfInformation,
    boundary,
    region_scores,
    region_scores_of_all,
    resize_labels,
)
from components.ucm import ucm_regions
from runs.errors import InputError

CLASSES = {
    "pri": ProbabilisticRandIndex,
    "voi": VariationOfInformation,
    "gce": GlobalConsistencyError,
    "bde": BoundaryDisplacementError,
    "sc": SegmentationCovering,
}


def some_maps(seed: int, count: int, shape: tuple[int, int] = (6, 7), labels: int = 4) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, labels, shape) for _ in range(count)]


# ---- each score again, by loops --------------------------------------------------------------------


def looped_pri(a, b) -> float:
    pixels = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    pairs = list(combinations(pixels, 2))
    return sum((p[0] == q[0]) == (p[1] == q[1]) for p, q in pairs) / len(pairs)


def entropy(values) -> float:
    values = list(values)
    return -sum(n / len(values) * math.log2(n / len(values)) for n in Counter(values).values())


def looped_voi(a, b) -> float:
    a, b = a.ravel().tolist(), b.ravel().tolist()
    mutual = entropy(a) + entropy(b) - entropy(zip(a, b, strict=True))
    return entropy(a) + entropy(b) - 2 * mutual


def looped_gce(a, b) -> float:
    """Martin et al.: for each pixel the share of its region in one map that is not in its region in the other."""
    places = list(np.ndindex(a.shape))

    def one_way(s, t) -> float:
        total = 0.0
        for p in places:
            mine = {q for q in places if s[q] == s[p]}
            other = {q for q in places if t[q] == t[p]}
            total += len(mine - other) / len(mine)
        return total

    return min(one_way(a, b), one_way(b, a)) / len(places)


def looped_boundary(a) -> list[tuple[int, int]]:
    height, width = a.shape
    found = []
    for y, x in np.ndindex(a.shape):
        along_x = a[y, min(x + 1, width - 1)] != a[y, max(x - 1, 0)]
        along_y = a[min(y + 1, height - 1), x] != a[max(y - 1, 0), x]
        if along_x or along_y:
            found.append((y, x))
    return found


def looped_bde(a, b) -> float | None:
    first, second = looped_boundary(a), looped_boundary(b)
    if not first or not second:
        return None

    def one_way(points, others) -> float:
        return sum(min(math.dist(p, q) for q in others) for p in points) / len(points)

    return (one_way(first, second) + one_way(second, first)) / 2


def looped_covering(a, b) -> float:
    """Area-weighted sum of the best IoUs, not divided."""
    total = 0.0
    for v in np.unique(b):
        human = set(zip(*np.nonzero(b == v), strict=True))
        machine = [set(zip(*np.nonzero(a == u), strict=True)) for u in np.unique(a)]
        total += len(human) * max(len(human & m) / len(human | m) for m in machine)
    return total


def looped(a, human) -> dict[str, float]:
    bde = [d for d in (looped_bde(a, b) for b in human) if d is not None]
    return {
        "pri": np.mean([looped_pri(a, b) for b in human]),
        "voi": np.mean([looped_voi(a, b) for b in human]),
        "gce": np.mean([looped_gce(a, b) for b in human]),
        "bde": np.mean(bde) if bde else math.hypot(*a.shape),
        "sc": sum(looped_covering(a, b) for b in human) / (len(human) * a.size),
    }


@pytest.mark.parametrize("seed", range(4))
def test_all_scores_are_those_of_loops_over_pixels_and_pairs(seed):
    a, *human = some_maps(seed, 4, labels=2 + seed)
    assert region_scores(a, human).as_dict() == pytest.approx(looped(a, human), abs=1e-12)


def test_scores_of_smooth_regions_are_those_of_loops():
    y, x = np.mgrid[:8, :10]
    a = (y > 3) * 2 + (x > 4)
    human = [(x > 5).astype(int), (y + x > 8) + 2 * (y < 2)]
    assert region_scores(a, human).as_dict() == pytest.approx(looped(a, human), abs=1e-12)


def test_scores_of_two_maps_are_those_of_the_libraries():
    a, b = some_maps(3, 2, (30, 40), 9)
    scores = region_scores(a, [b])
    assert scores.pri == pytest.approx(rand_score(b.ravel(), a.ravel()))
    assert scores.voi == pytest.approx(variation_of_information(b, a).sum())  # bits, as in scikit-image


def test_voi_is_in_bits():
    y, x = np.mgrid[:8, :8]
    assert region_scores((y > 3) * 1, [(x > 3) * 1]).voi == pytest.approx(2.0)  # 1.386 in nats


def test_equal_maps_score_best_and_a_renaming_changes_nothing():
    a, b, c = some_maps(1, 3, (12, 9), 5)
    perfect = region_scores(a, [a])
    assert perfect.as_dict() == pytest.approx({"pri": 1, "voi": 0, "gce": 0, "bde": 0, "sc": 1})
    assert perfect.voi >= 0
    names = np.array([900, -7, 2**40, 0, 31])  # gaps, negative and huge numbers
    renamed = region_scores(names[a], [names[b], 4 - c]).as_dict()
    assert renamed == pytest.approx(region_scores(a, [b, c]).as_dict())


def test_label_0_is_a_region_like_any_other():
    a, b = some_maps(2, 2, (9, 9), 3)
    assert region_scores(a, [b]).as_dict() == pytest.approx(region_scores(a + 1, [b + 1]).as_dict())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, bool])
def test_labels_of_any_whole_number_type_score_alike(dtype):
    a, b = some_maps(4, 2, labels=2)
    assert region_scores(a.astype(dtype), [b.astype(dtype)]) == region_scores(a, [b])


def test_tensors_and_arrays_score_alike():
    a, *human = some_maps(5, 3)
    assert region_scores(torch.tensor(a), [torch.tensor(h) for h in human]) == region_scores(a, human)


def test_large_tables_that_are_sorted_score_as_small_ones_that_are_counted(monkeypatch):
    a, *human = some_maps(6, 4, (20, 20), 30)
    counted = region_scores(a, human)
    monkeypatch.setattr(regions, "_CELLS_FOR_EACH_PIXEL", 0)
    assert region_scores(a, human) == counted


def test_several_segmentations_of_an_image_score_as_each_alone():
    *machine, b, c = some_maps(7, 5, (11, 13))
    assert region_scores_of_all(machine, [b, c]) == [region_scores(a, [b, c]) for a in machine]


def test_gce_is_blind_to_one_region_and_to_single_pixels_where_the_others_are_not():
    (b,) = some_maps(8, 1, (8, 8), 5)
    one, singles = np.zeros((8, 8), int), np.arange(64).reshape(8, 8)
    for a in (one, singles):
        scores = region_scores(a, [b])
        assert scores.gce == pytest.approx(0)
        assert scores.voi > 1.5 and scores.sc < 0.4


# ---- BDE's rules ---------------------------------------------------------------------------------


def test_a_map_has_a_boundary_exactly_if_it_has_two_regions():
    for number in range(2**8):  # all two-label maps of 2x4
        labels = np.array([(number >> bit) & 1 for bit in range(8)]).reshape(2, 4)
        assert boundary(labels).any() == (len(np.unique(labels)) > 1)


def test_boundaries_are_those_of_central_differences():
    for shape in ((5, 7), (1, 6), (6, 1), (2, 2)):
        (labels,) = some_maps(9, 1, shape, 3)
        assert sorted(zip(*np.nonzero(boundary(labels)), strict=True)) == looped_boundary(labels)
    unsigned = np.array([[0, 200, 0]], dtype=np.uint8)  # 0 - 200 wraps around to 56
    assert boundary(unsigned).tolist() == [[True, False, True]]


def test_bde_leaves_out_human_maps_of_one_region():
    a, b = some_maps(10, 2)
    plain = np.zeros_like(a)
    assert region_scores(a, [b, plain]).bde == region_scores(a, [b]).bde


def test_bde_is_the_diagonal_where_no_boundaries_can_be_compared():
    a, b = some_maps(11, 2, (3, 4))
    plain = np.zeros_like(a)
    for machine, human in ((a, [plain]), (plain, [b]), (plain, [plain, plain])):
        assert region_scores(machine, human).bde == 5.0


# ---- metrics over images -------------------------------------------------------------------------


def three_images() -> list[tuple[np.ndarray, list[np.ndarray]]]:
    shapes = ((6, 7), (12, 15), (5, 4))
    images = [some_maps(20 + number, 3 + number, shape) for number, shape in enumerate(shapes)]
    return [(a, human) for a, *human in images]


@pytest.mark.parametrize("name", [name for name in SCORES if name != "sc"])
def test_a_score_over_images_is_the_mean_of_the_images(name):
    metric = CLASSES[name]()
    for a, human in three_images():
        metric.update(a, human)
    expected = np.mean([getattr(region_scores(a, human), name) for a, human in three_images()])
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)


def test_covering_over_images_is_pooled_and_not_a_mean_of_images():
    metric = SegmentationCovering()
    for a, human in three_images():
        metric.update(a, human)
    covered = sum(looped_covering(a, b) for a, human in three_images() for b in human)
    area = sum(b.size for _, human in three_images() for b in human)
    assert float(metric.compute()) == pytest.approx(covered / area, abs=1e-12)
    mean = np.mean([region_scores(a, human).sc for a, human in three_images()])
    assert abs(covered / area - mean) > 1e-3


@pytest.mark.parametrize("name", SCORES)
def test_processes_that_share_the_images_find_what_one_finds(name):
    alone, first, second = (CLASSES[name]() for _ in range(3))
    for number, (a, human) in enumerate(three_images()):
        alone.update(a, human)
        (first if number == 0 else second).update(a, human)
    first.merge_state(second)
    assert float(first.compute()) == pytest.approx(float(alone.compute()), abs=1e-14)
    assert alone.total.dtype == torch.float64 if name != "sc" else alone.area.dtype == torch.float64


def test_metrics_forget_at_a_reset():
    metric = ProbabilisticRandIndex()
    (a, human), (other, other_human), _ = three_images()
    metric.update(a, human)
    metric.reset()
    metric.update(other, other_human)
    assert float(metric.compute()) == pytest.approx(region_scores(other, other_human).pri)


def made_up(seed: int, settings: int) -> list[RegionScores]:
    random = np.random.default_rng(seed)
    area = float(random.integers(50, 500))
    return [RegionScores(*random.uniform(0, 1, 4).tolist(), random.uniform(0, area), area) for _ in range(settings)]


def test_best_settings_of_images_and_of_the_set_are_those_of_a_search():
    table = [made_up(seed, 4) for seed in range(5)]  # images x settings
    metric = RegionBenchmark(4)
    for row in table:
        metric.update(row)
    found = {name: float(value) for name, value in metric.compute().items()}
    total_area = sum(row[0].area for row in table)
    for name in ("pri", "voi", "gce", "bde"):
        better = max if name == "pri" else min
        means = [np.mean([getattr(row[s], name) for row in table]) for s in range(4)]
        assert [found[f"setting_{s}/{name}"] for s in range(4)] == pytest.approx(means)
        assert found[f"ods/{name}"] == pytest.approx(better(means))
        assert found[f"ods_setting/{name}"] == means.index(better(means))
        assert found[f"ois/{name}"] == pytest.approx(np.mean([better(getattr(s, name) for s in row) for row in table]))
    coverings = [sum(row[s].covered for row in table) / total_area for s in range(4)]
    assert found["ods/sc"] == pytest.approx(max(coverings))
    assert found["ods_setting/sc"] == coverings.index(max(coverings))
    assert found["ois/sc"] == pytest.approx(sum(max(s.covered for s in row) for row in table) / total_area)
    chosen = [max(row, key=lambda s: s.pri) for row in table]
    assert found["ois_by_pri/voi"] == pytest.approx(np.mean([s.voi for s in chosen]))
    assert found["ois_by_pri/sc"] == pytest.approx(sum(s.covered for s in chosen) / total_area)


def test_of_equally_good_settings_the_first_counts():
    even = [RegionScores(0.5, voi, 0.1, 1.0, 4.0, 10.0) for voi in (3.0, 2.0)]
    metric = RegionBenchmark(2)
    metric.update(even)
    found = metric.compute()
    assert found["ods_setting/pri"] == 0 and found["ois_by_pri/voi"] == 3.0 and found["ois/voi"] == 2.0


def test_benchmarks_of_several_processes_merge():
    alone, first, second = (RegionBenchmark(3) for _ in range(3))
    for seed in range(5):
        alone.update(made_up(seed, 3))
        (first if seed % 2 else second).update(made_up(seed, 3))
    first.merge_state(second)
    expected = alone.compute()
    for name, value in first.compute().items():
        assert float(value) == pytest.approx(float(expected[name]), abs=1e-12), name


def test_scores_of_another_number_of_settings_are_refused():
    with pytest.raises(ValueError, match="2 scores of an image for 3 settings"):
        RegionBenchmark(3).update(made_up(0, 2))
    with pytest.raises(InputError, match="0 settings"):
        RegionBenchmark(0)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "human", "sentence"),
    [
        (np.zeros((4, 5), int), [np.zeros((5, 4), int)], r"has the size 4x5 .* human maps 5x4"),
        (np.zeros((4, 5), int), [np.zeros((4, 5), int), np.zeros((4, 6), int)], r"human map 1 has the size 4x6 .*4x5"),
        (np.zeros((4, 5), int), [], "give at least one"),
        (np.zeros((4, 5)), [np.zeros((4, 5), int)], "float64 values: labels are whole numbers"),
        (np.zeros((1, 4, 5), int), [np.zeros((4, 5), int)], "has 3 axes"),
        (np.zeros((1, 1), int), [np.zeros((1, 1), int)], "one pixel"),
    ],
)
@pytest.mark.parametrize("name", SCORES)
def test_maps_that_cannot_be_compared_are_refused(name, machine, human, sentence):
    with pytest.raises(InputError, match=sentence):
        CLASSES[name]().update(machine, human)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [((4, 6), (9, 11)), ((9, 11), (4, 6)), ((112, 168), (321, 481))])
def test_resized_labels_are_those_under_the_pixel_centres(old, new):
    labels = np.random.default_rng(0).integers(0, 1000, old)
    resized = resize_labels(labels, new)
    assert resized.shape == new
    for y, x in np.random.default_rng(1).integers(0, new, (200, 2)):
        row, column = math.floor((y + 0.5) * old[0] / new[0]), math.floor((x + 0.5) * old[1] / new[1])
        assert resized[y, x] == labels[row, column]
    tensor = torch.tensor(labels)
    assert torch.equal(resize_labels(tensor, new), torch.tensor(resized))
    theirs = F.interpolate(tensor[None, None].float(), new, mode="nearest-exact")[0, 0].long()
    assert torch.equal(torch.tensor(resized), theirs)


def test_resizing_mixes_no_labels():
    labels = np.array([[10, 50], [90, 70]])
    assert set(np.unique(resize_labels(labels, (37, 53)))) == {10, 50, 70, 90}


# ---- the benchmark's own numbers -----------------------------------------------------------------

SELF_TEST = (2018, 3063, 5096, 6046, 8068)


def maps_of(bsds, image: int) -> list[np.ndarray]:
    cells = loadmat(bsds / "BSDS500" / "data" / "groundTruth" / "test" / f"{image}.mat")["groundTruth"]
    return [cell["Segmentation"][0, 0] for cell in cells.ravel()]


def test_bsds_metrics_are_those_of_the_official_self_test(sample_data):
    """Five levels of segmentation of five images: PRI, VoI and covering to 1e-5."""
    bsds = sample_data / "bsds500"
    metric, images = RegionBenchmark(5), []
    for image in SELF_TEST:
        levels = loadmat(bsds / "bench" / "data" / "segs" / f"{image}.mat")["segs"].ravel()
        images.append(region_scores_of_all(list(levels), maps_of(bsds, image)))
        metric.update(images[-1])
    found = {name: float(value) for name, value in metric.compute().items()}
    official = {
        path.stem.removeprefix("eval_"): np.loadtxt(path) for path in (bsds / "bench/data/test_4").glob("eval_*.txt")
    }
    near = {"abs": 1e-5, "rel": 0}
    for level in range(5):
        assert found[f"setting_{level}/pri"] == pytest.approx(official["RI_VOI_thr"][level, 1], **near)
        assert found[f"setting_{level}/voi"] == pytest.approx(official["RI_VOI_thr"][level, 2], **near)
        assert found[f"setting_{level}/sc"] == pytest.approx(official["cover_th"][level, 1], **near)
    best = official["RI_VOI"]
    assert (found["ods_setting/pri"] + 1, found["ods_setting/voi"] + 1) == (best[0], best[3])
    places = ("ods/pri", "ois/pri", "ods/voi", "ois/voi")
    assert [found[place] for place in places] == pytest.approx(best[[1, 2, 4, 5]].tolist(), **near)
    assert [found["ods/sc"], found["ois/sc"]] == pytest.approx(official["cover"][1:3].tolist(), **near)
    for scores, row in zip(images, official["cover_img"], strict=True):
        each = [s.sc for s in scores]
        assert each.index(max(each)) + 1 == row[1] and max(each) == pytest.approx(row[2], **near)


def official_row(bsds, image: int) -> tuple[float, float]:
    """Best threshold of an image's hierarchy among k/100, and the covering there."""
    human = HumanMaps(maps_of(bsds, image))
    ucm2 = loadmat(bsds / "BSDS500" / "ucm2" / "test" / f"{image}.mat")["ucm2"]
    coverings = [np.divide(*human.covered(ucm_regions(ucm2, k / 100))) for k in range(1, 100)]
    best = int(np.argmax(coverings))
    return (best + 1) / 100, float(coverings[best])


def in_official_table(bsds, image: int) -> bool:
    """Whether the table of the 200 test images, which has no names, has this image's threshold and covering."""
    table = np.loadtxt(bsds / "BSDS500" / "ucm2" / "test_eval" / "eval_cover_img.txt")
    threshold, covering = official_row(bsds, image)
    return bool(((np.abs(table[:, 1] - threshold) < 1e-9) & (np.abs(table[:, 2] - covering) < 1e-5)).any())


def test_bsds_metrics_find_an_image_of_the_official_gpb_evaluation(sample_data):
    assert in_official_table(sample_data / "bsds500", 2018)


@pytest.mark.slow
def test_bsds_metrics_find_all_images_of_the_official_gpb_evaluation(sample_data):
    bsds = sample_data / "bsds500"
    images = sorted(int(path.stem) for path in (bsds / "BSDS500" / "ucm2" / "test").glob("*.mat"))
    assert len(images) == 20 and all(in_official_table(bsds, image) for image in images)


def test_bsds_metrics_give_the_known_scores_of_gpb_on_the_20_test_images(sample_data):
    """The numbers of the paper's page: 19 thresholds k/20; its fixed-threshold covering is a mean of the images."""
    bsds = sample_data / "bsds500"
    metric, coverings = RegionBenchmark(19), []
    for path in (bsds / "BSDS500" / "ucm2" / "test").glob("*.mat"):
        ucm2 = loadmat(path)["ucm2"]
        scores = region_scores_of_all([ucm_regions(ucm2, k / 20) for k in range(1, 20)], maps_of(bsds, int(path.stem)))
        metric.update(scores)
        coverings.append([s.sc for s in scores])
    found = {name: float(value) for name, value in metric.compute().items()}
    near = {"abs": 5e-4, "rel": 0}
    assert [found["ois/pri"], found["ois/voi"], found["ois/sc"]] == pytest.approx([0.8511, 1.4540, 0.6469], **near)
    assert [found["ods/pri"], found["ods/voi"]] == pytest.approx([0.8185, 1.6876], **near)
    settings = [(found[f"ods_setting/{name}"] + 1) / 20 for name in ("pri", "voi", "sc")]
    assert settings == pytest.approx([0.15, 0.40, 0.20])
    assert np.mean(coverings, axis=0).max() == pytest.approx(0.5850, **near)


def test_raw_superpixels_have_a_good_pri_and_are_no_segmentation(sample_data):
    """Why PRI alone says little: 277 regions an image, on average."""
    bsds = sample_data / "bsds500"
    metric = RegionBenchmark(1)
    for path in (bsds / "BSDS500" / "ucm2" / "test").glob("*.mat"):
        regions_of = ucm_regions(loadmat(path)["ucm2"], 0.06)
        metric.update([region_scores(regions_of, maps_of(bsds, int(path.stem)))])
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["setting_0/pri"] == pytest.approx(0.77, abs=5e-3)
    assert found["setting_0/voi"] == pytest.approx(3.47, abs=5e-3)
    assert found["setting_0/sc"] < 0.41 and found["setting_0/gce"] < 0.1
