"""What DIC's module promises beyond Algorithm 1: seeds, results, scores, settings, and sentences."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from components.metrics.regions import region_scores
from lightning_modules.dic.baselines import FelzenszwalbRegions, KMeansColours, NormalizedCut, SLICRegions
from lightning_modules.dic.figures import boundaries_on, magnified, mean_colours
from lightning_modules.dic.network import DeepClustering, FeatureTransform
from lightning_modules.dic.per_image import PerImageSegmenter, Segmentation, enlarge_pixels
from runs.errors import InputError
from tests.papers.dic_samples import dic_module, sample


class Kept:
    """Results in memory."""

    def __init__(self):
        self.found, self.about, self.steps = {}, {}, []

    def find(self, image, setting, fingerprint):
        return self.found.get((image, setting, fingerprint))

    def keep(self, image, setting, fingerprint, made, about):
        self.found[image, setting, fingerprint], self.about[image, setting] = made, about

    def inner_step(self, done, total, note):
        self.steps.append((done, total, note))


def test_neither_order_nor_neighbours_nor_the_file_name_change_a_label_map():
    """Trap 5."""
    images = [sample(seed, name=f"{seed}") for seed in range(3)]

    def maps(order, settings):
        module = dic_module(settings=settings)
        found = {}
        for place in order:
            for position, setting in enumerate(settings):
                torch.rand(7)  # draws of others
                made = module.segmentation(images[place], position)
                found[place, tuple(setting)] = made.labels
        return found

    first = maps([0, 1, 2], [[5, 4], [7, 3]])
    second = maps([2, 0, 1], [[7, 3], [5, 4]])
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    renamed = dic_module().segmentation({**images[0], "name": "other"}, 0).labels
    assert torch.equal(renamed, first[0, (5, 4)])


def test_seed_image_and_setting_each_draw_another_network():
    drawn = []
    real = FeatureTransform.__init__

    class Spy(FeatureTransform):
        def __init__(self, *args, **kwargs):
            real(self, *args, **kwargs)
            drawn.append(self.top[0][0].weight.detach().flatten()[:4].tolist())

    fts = partial(Spy, upsample="bilinear", out_bn=True)
    for seed, image, settings in ((0, 0, [[5, 4]]), (1, 0, [[5, 4]]), (0, 1, [[5, 4]]), (0, 0, [[5, 3]])):
        dic_module(fts=fts, seed=seed, settings=settings, T=1).segmentation(sample(image), 0)
    assert len({tuple(weights) for weights in drawn}) == 4


def test_variants_of_the_clustering_start_from_the_same_feature_network():
    """So that runs with and without it, of one seed, are pairs."""
    starts = []

    class Spy(FeatureTransform):
        def forward(self, image):
            starts.append(self.top[0][0].weight.detach().clone())
            return super().forward(image)

    for variant in ("official", "none", "paper"):
        module = dic_module(
            fts=partial(Spy, upsample="bilinear", out_bn=True),
            dcs=partial(DeepClustering, variant=variant, gamma=3),
            T=1,
        )
        module.segmentation(sample(), 0)
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])


def test_eval_mode_changes_no_label():
    """Trap 4, seen from outside."""
    training, judging = dic_module(), dic_module().eval()
    with torch.no_grad():
        judged = judging.segmentation(sample(), 0).labels
    assert torch.equal(training.segmentation(sample(), 0).labels, judged)


def test_a_kept_result_is_not_made_again_and_another_cause_is():
    module, kept = dic_module(), Kept()
    module.use_results(kept)
    first = module.segmentation(sample(), 0)
    module.segment = None  # any call would fail
    assert module.segmentation(sample(), 0) is first
    with pytest.raises(TypeError):
        module.segmentation(sample(seed=1), 0)


def test_the_fingerprint_knows_all_that_decides_a_label_map():
    base, batch = dic_module(), sample()
    known = base.fingerprint(batch, [5, 4])
    assert known == dic_module().fingerprint(sample(name="elsewhere"), [5, 4])
    assert known == base.fingerprint({**batch, "human": []}, [5, 4]), "human maps decide nothing"
    others = [
        base.fingerprint(sample(seed=1), [5, 4]),
        base.fingerprint({**batch, "guide": batch["guide"].flip(0)}, [5, 4]),
        base.fingerprint({**batch, "image": batch["image"].roll(1, 2)}, [5, 4]),
        base.fingerprint(batch, [5, 5]),
        dic_module(seed=1).fingerprint(batch, [5, 4]),
        dic_module(T=4).fingerprint(batch, [5, 4]),
        dic_module(width=0.2).fingerprint(batch, [5, 4]),
        dic_module(min_labels=3).fingerprint(batch, [5, 4]),
        dic_module(fts=partial(FeatureTransform, upsample="deconv", out_bn=True)).fingerprint(batch, [5, 4]),
        dic_module(dcs=partial(DeepClustering, variant="none", gamma=3)).fingerprint(batch, [5, 4]),
        dic_module(optimizer=partial(torch.optim.SGD, lr=0.06, momentum=0.9)).fingerprint(batch, [5, 4]),
    ]
    assert len({known, *others}) == 12
    assert json.dumps(base.recipe()), "plain values"


def optimiser(module: str, name: str):
    """An SGD of that name."""
    return partial(type(name, (torch.optim.SGD,), {"__module__": module, "__qualname__": name}), lr=0.05)


def method(module: str, name: str) -> PerImageSegmenter:
    """A segmenter of that name."""
    return type(name, (Fixed,), {"__module__": module, "__qualname__": name})([None])


def with_precision(name: str) -> PerImageSegmenter:
    module = dic_module()
    module._trainer = SimpleNamespace(precision=name)
    return module


COMMON = {"ois_select": "pri", "seed": 0}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: method("a", "Slic"), lambda: method("a", "Grid")),
        (lambda: method("a", "Slic"), lambda: method("b", "Slic")),
        (lambda: with_precision("32-true"), lambda: with_precision("bf16-mixed")),
        (lambda: dic_module(optimizer=optimiser("a", "SGD")), lambda: dic_module(optimizer=optimiser("a", "Adam"))),
        (lambda: dic_module(optimizer=optimiser("a", "SGD")), lambda: dic_module(optimizer=optimiser("b", "SGD"))),
        (lambda: KMeansColours(1, [[5]], **COMMON), lambda: KMeansColours(2, [[5]], **COMMON)),
        (lambda: FelzenszwalbRegions(0.8, 9, [[5]], **COMMON), lambda: FelzenszwalbRegions(0.7, 9, [[5]], **COMMON)),
        (lambda: FelzenszwalbRegions(0.8, 9, [[5]], **COMMON), lambda: FelzenszwalbRegions(0.8, 8, [[5]], **COMMON)),
        (lambda: SLICRegions(10.0, [[5]], **COMMON), lambda: SLICRegions(11.0, [[5]], **COMMON)),
        (lambda: NormalizedCut(255.0, 10, [[5]], **COMMON), lambda: NormalizedCut(254.0, 10, [[5]], **COMMON)),
        (lambda: NormalizedCut(255.0, 10, [[5]], **COMMON), lambda: NormalizedCut(255.0, 11, [[5]], **COMMON)),
    ],
)
def test_the_fingerprint_knows_method_precision_optimiser_and_the_rivals_numbers(one, other):
    batch, prints = sample(), [build().fingerprint(sample(), [5, 4]) for build in (one, one, other)]
    assert prints[0] == prints[1] != prints[2]
    hierarchies = [one().fingerprint({**batch, "ucm2": torch.full((31, 35), value)}, [5, 4]) for value in (0.1, 0.2)]
    assert len({prints[0], *hierarchies}) == 3


def test_settings_that_differ_have_names_that_differ():
    module = NormalizedCut(255.0, 10, [[0.1], [0.1234567], [0.12345671], [1e-7], [2.0], [1234567]], **COMMON)
    names = ["0.1", "0.1234567", "0.12345671", "1e-07", "2", "1234567"]
    assert module.labels_of_settings == [f"threshold{name}" for name in names]
    with pytest.raises(InputError, match="holds threshold2 twice"):
        NormalizedCut(255.0, 10, [[2], [2.0]], **COMMON)


def test_a_map_of_a_diverged_network_is_refused_and_not_kept():
    """NaN features have one label, as a map that merged into one region."""
    module, kept = dic_module(T=8, optimizer=partial(torch.optim.SGD, lr=1e30)), Kept()
    module.use_results(kept)
    with pytest.raises(
        InputError, match=r"^one with C5_M4: the loss is not finite in inner step [2-8] of 8; lower model"
    ):
        module.segmentation(sample(), 0)
    assert kept.found == {}


def test_a_guide_of_one_superpixel_is_answered_with_one_region_and_no_step():
    plain = sample(1, name="sky", guide=torch.zeros(15, 17, dtype=torch.long))
    module, kept = dic_module(min_labels=0), Kept()
    module.use_results(kept)
    logged = scores_of(module, [plain, sample()])
    assert not kept.found["sky", "C5_M4", module.fingerprint(plain, [5, 4])].labels.any()
    assert [row["steps"] for row in module.table] == [3, None] and logged["test/judged_images"] == 2
    (row,) = dic_module().predict_step(plain, 0)
    assert row["C5_M4_count"] == 1
    labels = NormalizedCut(255.0, 10, [[0.1]], **COMMON).segmentation(plain, 0).labels
    assert not labels.any()


def test_a_result_says_what_it_was_made_of_and_what_it_scored():
    module, kept = dic_module(), Kept()
    module.use_results(kept)
    made = module.segmentation(sample(), 0)
    about = kept.about["one", "C5_M4"]
    assert about["setting"] == {"C": 5, "M": 4} and about["superpixels"] == 20 and about["guide_source"] == "squares"
    assert about["labels"] == len(made.labels.unique()) and set(about["scores"]) == {"pri", "voi", "gce", "bde", "sc"}
    assert [step[:2] for step in kept.steps] == [(1, 3), (2, 3), (3, 3)][: len(kept.steps)] and kept.steps
    assert kept.steps[-1][2] == f"{about['labels']} labels"


class Fixed(PerImageSegmenter):
    """Says what it is told to."""

    setting_names = ("n",)

    def __init__(self, answers, **changes):
        super().__init__(**{"settings": [[n] for n in range(len(answers))], "ois_select": "pri", "seed": 0, **changes})
        self.answers = answers

    def segment(self, sample, setting):
        return Segmentation(self.answers[int(setting[0])][int(sample["index"])])

    def recipe(self):
        return {}


def scores_of(module: PerImageSegmenter, samples: list) -> dict[str, float]:
    """What a test logs."""
    logged = {}
    module._trainer = SimpleNamespace(world_size=1, precision="32-true")
    module.log = lambda name, value, **_: logged.__setitem__(name, float(value))
    module.on_test_start()
    for number, batch in enumerate(samples):
        module.test_step(batch, number)
    module.on_test_epoch_end()
    return logged


def pair_counting_pri(labels: np.ndarray, human: list[np.ndarray]) -> float:
    """Share of pixel pairs on which two maps agree, by counting the pairs."""
    values = []
    for other in human:
        same = labels.flatten()[:, None] == labels.flatten()[None]
        same_other = other.flatten()[:, None] == other.flatten()[None]
        upper = np.triu(np.ones_like(same), 1).astype(bool)
        values.append((same == same_other)[upper].mean())
    return float(np.mean(values))


def test_test_scores_are_those_of_the_best_setting_of_each_image_of_the_set_and_of_each_alone():
    images = [sample(seed) for seed in range(2)]
    generator = torch.Generator().manual_seed(3)
    answers = [
        [torch.randint(0, count, (15, 17), generator=generator) // (1 + n) for n in range(2)] for count in (2, 5)
    ]
    answers[0][0] = images[0]["human"][0]
    answers[1][1] = images[1]["human"][1]
    pri = np.array([
        [pair_counting_pri(answers[s][n].numpy(), [h.numpy() for h in images[n]["human"]]) for s in range(2)]
        for n in range(2)
    ])  # fmt: skip
    logged = scores_of(Fixed(answers), images)
    assert logged["test/pri"] == pytest.approx(pri.max(axis=1).mean())
    assert logged["test/ois_pri"] == logged["test/ois_by_pri_pri"] == logged["test/pri"]
    assert logged["test/ods_pri"] == pytest.approx(pri.mean(axis=0).max())
    assert logged["test/n0_pri"] == pytest.approx(pri[:, 0].mean())
    floor = np.mean([pair_counting_pri(np.zeros((15, 17)), [h.numpy() for h in i["human"]]) for i in images])
    guide = np.mean([pair_counting_pri(i["guide"].numpy(), [h.numpy() for h in i["human"]]) for i in images])
    assert logged["test/guide_pri"] == pytest.approx(guide) and logged["floor/pri"] == pytest.approx(floor)
    own = {"labels", "first_labels", "steps", "seconds", "superpixels", "judged_images"}
    for name in logged:
        stage, _, rest = name.partition("/")
        assert stage == "floor" or rest in own or f"floor/{rest}" in logged, name


@pytest.mark.parametrize(("select", "way"), [("per_metric", "ois_"), ("pri", "ois_by_pri_")])
def test_the_headline_is_what_ois_select_says_and_all_five_scores_are_there(select, way):
    """Trap 2: no score alone."""
    generator = torch.Generator().manual_seed(5)
    answers = [[torch.randint(0, count, (15, 17), generator=generator)] for count in (2, 40)]
    logged = scores_of(Fixed(answers, ois_select=select), [sample()])
    for name in ("pri", "voi", "gce", "bde", "sc"):
        assert logged[f"test/{name}"] == logged[f"test/{way}{name}"]
    # Hundreds of small regions win GCE and lose all else: which setting counts makes a difference.
    assert (
        logged["test/ois_gce"] < logged["test/ois_by_pri_gce"] or logged["test/ois_voi"] < logged["test/ois_by_pri_voi"]
    )


def test_a_label_map_is_judged_at_the_size_of_the_human_maps_without_mixing_labels():
    """Trap 7."""
    big = [F.interpolate(h[None, None].double(), (45, 51), mode="nearest")[0, 0].long() for h in sample()["human"]]
    batch = sample(human=big, size=(45, 51))
    labels = torch.where(sample()["human"][0] > 0, 7, 2)  # 2 and 7: a mixture would be 3 to 6
    logged = scores_of(Fixed([[labels]]), [batch])
    exact = labels.repeat_interleave(3, 0).repeat_interleave(3, 1)
    expected = pair_counting_pri(exact.numpy()[::3, ::3], [h.numpy()[::3, ::3] for h in big])
    assert logged["test/pri"] == pytest.approx(expected, abs=2e-3)
    # BDE is in pixels of the human maps: a third of it were they made smaller.
    assert logged["test/bde"] == pytest.approx(region_scores(exact, big).bde)
    rows = Fixed([[labels]]).predict_step(batch, 0)
    assert np.array_equal(np.array(rows[0]["n0_labels"]), exact.numpy())
    assert rows[0]["n0_count"] == 2 and rows[0]["n0_boundaries"].size == (51, 45)


def test_images_without_human_maps_are_segmented_and_not_judged(caplog):
    with caplog.at_level("INFO"):
        logged = scores_of(dic_module(), [sample(human=[])])
    assert "none was judged" in caplog.text
    assert logged["test/judged_images"] == 0 and logged["test/labels"] >= 1 and "test/pri" not in logged


def test_a_spare_sample_counts_for_nothing():
    spare = sample(1, spare=torch.tensor([True]))
    assert scores_of(dic_module(), [sample(), spare])["test/judged_images"] == 1
    assert dic_module().predict_step(spare, 0) == []


def test_figures_show_every_map_and_the_inner_steps():
    module = dic_module()
    scores_of(module, [sample(seed) for seed in range(6)])
    figures = module.figures("test")
    assert set(figures) == {"segmentations", "inner_steps"} and module.figures("val") == {}
    captions = [axes.get_title() for axes in figures["segmentations"].axes]
    assert "one human map" in captions and "20 superpixels (squares)" in captions and len(captions) == 4 * 5
    loss, live = figures["inner_steps"].axes
    assert len(loss.lines) == len(live.lines)
    np.testing.assert_allclose(live.lines[0].get_ydata(), next(iter(module.curves.values()))["labels"])


def test_boundaries_lie_where_neighbours_differ_and_nowhere_else():
    labels = np.random.default_rng(0).integers(0, 3, (6, 7))
    drawn = boundaries_on(np.zeros((6, 7, 3), np.uint8), labels).any(axis=2)
    for y in range(6):
        for x in range(7):
            right = x < 6 and labels[y, x] != labels[y, x + 1]
            below = y < 5 and labels[y, x] != labels[y + 1, x]
            assert drawn[y, x] == (right or below)


def test_mean_colours_and_magnified_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    labels = np.array([[0, 0, 1, 1, 1]] * 4)
    shown = mean_colours(pixels, labels)
    np.testing.assert_allclose(shown[0, 0], pixels[:, :2].reshape(-1, 3).mean(axis=0), atol=1)
    np.testing.assert_allclose(shown[3, 4], pixels[:, 2:].reshape(-1, 3).mean(axis=0), atol=1)
    large = magnified(pixels)
    assert large.shape == (4 * 64, 5 * 64, 3) and (large[::64, ::64] == pixels).all()
    assert enlarge_pixels(torch.tensor(pixels).permute(2, 0, 1), (8, 10)).shape == (3, 8, 10)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": []}, r"model\.settings is empty: give a list of \[C, M\]"),
        ({"settings": [[50]]}, r"model\.settings: \[50\] must be \[C, M\]"),
        ({"settings": [[50, 32, 1]]}, r"must be \[C, M\]"),
        ({"settings": [[5, 4], [5, 4]]}, r"model\.settings holds C5_M4 twice"),
        ({"settings": [[1, 4]]}, r"\[1, 4\] needs 2 channels or more"),
        ({"settings": [[5, 0]]}, r"\[5, 0\] needs .* 1 centre or more"),
        ({"T": 0}, r"model\.T=0 must be 1 inner step or more"),
        ({"width": 0.0}, r"model\.width=0\.0 must be above 0"),
        ({"min_labels": -1}, r"model\.min_labels=-1 must be 0 labels or more"),
        ({"dcs": partial(DeepClustering, variant="official", gamma=0)}, r"model\.dcs\.gamma=0 must be 1 round or more"),
    ],
)
def test_what_cannot_be_segmented_with_is_a_sentence(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        dic_module(**changes)


def test_float32_and_bfloat16_are_taken():
    for precision in ("bf16-mixed", "32-true"):
        with_precision(precision).setup("fit")


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true", "64-true"])
def test_other_floats_are_refused(precision):
    with pytest.raises(InputError, match=f"precision={precision} is not for DIC: use 32-true or bf16-mixed"):
        with_precision(precision).setup("fit")


def test_under_bfloat16_autocast_it_still_segments():
    """Trap 10, the whole loop."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = dic_module(T=15, min_labels=0).segment(sample(), [8, 4])
    loss = made.curves["loss"]
    assert loss.dtype == torch.float32 and loss.isfinite().all() and loss[-1] < loss[0]
