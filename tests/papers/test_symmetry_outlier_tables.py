"""The paper's rows on its own data sets, and what the method does on generated ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.metrics import roc_auc_score

from components.metrics.clustering import MatchedPrecisionRecall
from datamodules.generated_outliers import OUTLIER, GeneratedOutliers
from datamodules.table import fit_scaling
from datamodules.table_files import Table
from lightning_modules.symmetry_outlier.clustering import Clustering
from lightning_modules.symmetry_outlier.degree import normalise, symmetry_distance_degree, upper_bound
from lightning_modules.symmetry_outlier.search import search_of
from runs.building import build
from runs.composition import PROJECT_ROOT


def table_of(data: str, root: Path) -> Table:
    """A data set as its config reads it."""
    reader = OmegaConf.load(PROJECT_ROOT / "conf" / "data" / f"{data}.yaml").reader
    return build(reader).read(root)


def scaled(table: Table, scale: str = "minmax") -> torch.Tensor:
    features = table.features
    return torch.from_numpy(fit_scaling(features, scale, clip=False, drop_constant=False)(features))


def degree_of(x: torch.Tensor, k: int = 10) -> torch.Tensor:
    symmetry, distance = symmetry_distance_degree(x, k)
    difference = symmetry - distance
    return normalise(difference, difference.min(), difference.max())


def clusters_of(x: torch.Tensor, method: str, clusters: int, denoised: bool, pct: float = 2.0) -> np.ndarray:
    degree = degree_of(x)
    kept = degree <= upper_bound(degree, 0.5) if denoised else torch.ones(len(x), dtype=torch.bool)
    found = Clustering(method, clusters, pct=pct, kernel="gaussian", n_init=10, seed=0).fit_predict(
        x[kept].numpy(), clusters
    )
    return found[search_of(x[kept], "auto").nearest(x)[0].numpy()]


def scores(found: np.ndarray, label: np.ndarray) -> dict[str, float]:
    metric = MatchedPrecisionRecall(int(found.max()) + 1, int(label.max()) + 1)
    return {name: float(v) for name, v in metric(torch.from_numpy(found), torch.from_numpy(label)).items()}


@pytest.mark.parametrize(
    ("data", "scale", "pct", "f1", "within", "paper"),
    [
        ("uci_wine", "minmax", 2.0, 0.898, 0.005, (0.90, 0.90, 0.90)),
        ("uci_wdbc", "minmax", 2.5, 0.37, 0.01, (0.31, 0.47, 0.37)),
        ("uci_banknote", "none", 2.0, 0.791, 0.005, (0.82, 0.77, 0.79)),
        ("uci_banknote", "minmax", 2.0, 0.981, 0.005, (0.98, 0.98, 0.98)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*passed over")
def test_dpc_without_denoising_gives_the_papers_rows(sample_data, data, scale, pct, f1, within, paper):
    """The last row is printed there as that of denoised data: scaling alone gives it."""
    table = table_of(data, sample_data / "uci_small")
    found = scores(clusters_of(scaled(table, scale), "dpc", len(table.class_names), False, pct), table.label)
    assert found["f1"] == pytest.approx(f1, abs=within)
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx(paper, abs=0.0051)


@pytest.mark.parametrize(
    ("data", "before", "least"), [("uci_wine", 0.186, 0.90), ("uci_banknote", 0.650, 0.70), ("uci_wdbc", 0.623, 0.65)]
)
@pytest.mark.filterwarnings("ignore:.*passed over")
def test_denoising_helps_average_linkage(sample_data, data, before, least):
    table = table_of(data, sample_data / "uci_small")
    x, K = scaled(table), len(table.class_names)
    assert scores(clusters_of(x, "average", K, False), table.label)["f1"] == pytest.approx(before, abs=0.01)
    assert scores(clusters_of(x, "average", K, True), table.label)["f1"] >= least


def test_the_share_of_aggregation_that_is_flagged(sample_data):
    degree = degree_of(scaled(table_of("aggregation", sample_data / "clustering_2d")))
    for r, share in ((0.5, 0.20), (1.5, 0.14)):
        assert float((degree > upper_bound(degree, r)).double().mean()) == pytest.approx(share, abs=0.02)


def test_no_row_of_ionosphere_is_flagged(sample_data):
    degree = degree_of(scaled(table_of("uci_iono", sample_data / "uci_small")))
    assert float(upper_bound(degree, 0.5)) > 1


def test_tree_and_blocks_agree_on_banknote(sample_data):
    x = scaled(table_of("uci_banknote", sample_data / "uci_small"))
    for tree, blocks in zip(
        symmetry_distance_degree(x, 10, "tree"), symmetry_distance_degree(x, 10, "blocks"), strict=True
    ):
        assert float((tree - blocks).abs().max()) < 1e-8


@pytest.mark.parametrize("data", ["uci_spambase", "uci_iono", "uci_yeast"])
def test_sets_with_duplicates_have_finite_ratios(sample_data, data):
    x = scaled(table_of(data, sample_data / "uci_small"))[:1500]
    for ratio in symmetry_distance_degree(x, 10):
        assert torch.isfinite(ratio).all() and float(ratio.min()) >= 0


def bridge(seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Scaled points, classes, and which are noise."""
    drawn = GeneratedOutliers("bridge", n_noise=20, seed=seed).draw()
    points = np.concatenate(list(drawn.values()))
    label = np.repeat(np.arange(len(drawn)), [len(part) for part in drawn.values()])
    x = torch.from_numpy(fit_scaling(points, "minmax", clip=False, drop_constant=False)(points))
    return x, label, label == list(drawn).index(OUTLIER)


def test_noise_between_clusters_is_found_and_single_linkage_recovers():
    """30 sets, none chosen. Where one noise point is left it takes a cluster, which happens to one set in three.

    So ten sets are too few for a median: of the first ten five are recovered.
    """
    auc, recall, before, after = [], [], [], []
    for seed in range(30):
        x, label, noise = bridge(seed)
        degree = degree_of(x)
        auc.append(roc_auc_score(noise, degree))
        recall.append(float((degree > upper_bound(degree, 0.5)).numpy()[noise].mean()))
        for kept, denoised in ((before, False), (after, True)):
            found = clusters_of(x, "single", 4, denoised)[~noise]
            kept.append(scores(found, label[~noise])["f1"])
    assert np.mean(auc) >= 0.95 and np.mean(recall) >= 0.90
    assert np.mean(before) <= 0.35
    assert np.mean(after) >= 0.75 and np.median(after) >= 0.95
