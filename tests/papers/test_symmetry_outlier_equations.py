"""Eq. 2 to 10 against double loops, the paper's worked example, numpy and scipy; DPC against its own equations."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, pdist
from scipy.stats import special_ortho_group

from lightning_modules.symmetry_outlier.clustering import Clustering, density_peaks, distance_at
from lightning_modules.symmetry_outlier.degree import (
    normalise,
    quartiles,
    symmetry_distance_degree,
    upper_bound,
)
from lightning_modules.symmetry_outlier.search import search_of
from runs.errors import InputError
from tests.toy.whole_runs import state_of, train

EXAMPLE = [0.10, 0.15, 0.30, 0.35, 0.40, 0.42, 0.45, 0.50, 0.57, 0.60, 0.68, 0.72, 0.81, 0.87, 2.07, 2.25]


def points(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


def by_loops(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """R_s and R_d straight from Eq. 2 to 4."""
    n = len(x)
    near = []
    for i in range(n):
        others = sorted((float(np.linalg.norm(x[i] - x[j])), j) for j in range(n) if j != i)
        near.append(others[:k])
    R_s, R_d = np.zeros(n), np.ones(n)
    for i in range(n):
        own = sum(distance for distance, _ in near[i])
        if own == 0:
            continue
        apart = 0.0
        for _, j in near[i]:
            mirrored = 2 * x[i] - x[j]
            apart += min(float(np.linalg.norm(mirrored - other)) for other in x)
        R_s[i] = apart / own
        R_d[i] = sum(distance for _, j in near[i] for distance, _ in near[j]) / (k * own)
    return R_s, R_d


def degrees(x: torch.Tensor, k: int = 10) -> torch.Tensor:
    symmetry, distance = symmetry_distance_degree(x, k)
    difference = symmetry - distance
    return normalise(difference, difference.min(), difference.max())


class TestRatios:
    @pytest.mark.parametrize("method", ["tree", "blocks"])
    @pytest.mark.parametrize(("n", "d", "k"), [(40, 2, 5), (30, 20, 4), (12, 3, 11)])
    def test_both_ratios_are_those_of_the_equations(self, method, n, d, k):
        x = points(n, d)
        for ours, loops in zip(symmetry_distance_degree(x, k, method), by_loops(x.numpy(), k), strict=True):
            assert ours.numpy() == pytest.approx(loops, abs=1e-12)

    @pytest.mark.parametrize("method", ["tree", "blocks"])
    def test_ties_go_to_the_lower_row_whatever_searches(self, method):
        """A grid has ties everywhere; the loops break them by row, as its coordinates are exact."""
        x = np.stack(np.meshgrid(np.arange(6.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
        x = x[np.random.default_rng(1).permutation(len(x))]
        for ours, loops in zip(symmetry_distance_degree(torch.from_numpy(x), 6, method), by_loops(x, 6), strict=True):
            assert ours.numpy() == pytest.approx(loops, abs=1e-12)

    @pytest.mark.parametrize("method", ["tree", "blocks"])
    def test_the_nearest_point_is_the_lower_row_of_equals(self, method):
        """The middles of a grid's squares, turned so that rounding would choose: four points are as near."""
        grid = torch.cartesian_prod(torch.arange(9.0), torch.arange(9.0)).double()
        grid = grid[torch.randperm(81, generator=torch.Generator().manual_seed(0))]
        middle = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).double() + 0.5
        apart = torch.linalg.vector_norm(middle[:, None] - grid, dim=2)
        lowest = (apart < 0.8).int().argmax(dim=1)
        turn = torch.from_numpy(special_ortho_group(2, seed=3).rvs())
        rows, distances = search_of(0.1 * grid @ turn - 1 / 3, method).nearest(0.1 * middle @ turn - 1 / 3)
        assert torch.equal(rows, lowest)
        assert distances.numpy() == pytest.approx(0.1 * np.sqrt(0.5))

    @pytest.mark.parametrize("method", ["tree", "blocks"])
    def test_the_neighbours_are_k_others_even_among_duplicates(self, method):
        x = torch.cat([points(20, 2), torch.zeros(30, 2, dtype=torch.float64), points(20, 2, seed=2)])
        own = torch.arange(len(x))
        rows, distances = search_of(x, method).k_nearest(x, 5, own)
        assert not (rows == own[:, None]).any()
        assert all(len(set(row)) == 5 for row in rows.tolist())
        assert rows[20].sort().values.tolist() == [21, 22, 23, 24, 25]  # 29 equals: the lower rows
        assert rows[40].sort().values.tolist() == [20, 21, 22, 23, 24]
        assert float(distances[20:50].max()) == 0

    def test_the_point_itself_can_be_the_nearest_of_a_mirror_image(self):
        """Without it the ratio exceeds 1: here the next nearest are far away."""
        x = torch.cat([points(60, 2), torch.tensor([[50.0, 50.0]], dtype=torch.float64)])
        symmetry, distance = symmetry_distance_degree(x, 10)
        assert float(symmetry.max()) <= 1 + 1e-12 and float(symmetry.min()) >= 0
        assert float(symmetry[-1]) == pytest.approx(1.0, abs=1e-12)
        assert float(distance[-1]) < 0.05

    def test_a_far_point_beside_200_normal_ones(self):
        x = torch.cat([points(200, 2), torch.tensor([[50.0, 50.0]], dtype=torch.float64)])
        symmetry, distance = symmetry_distance_degree(x, 10)
        assert float(symmetry[-1]) == pytest.approx(1.0, abs=1e-14) and float(distance[-1]) < 0.02
        assert int(degrees(x).argmax()) == 200

    @pytest.mark.parametrize("method", ["tree", "blocks"])
    def test_a_pile_of_duplicates_is_no_outlier(self, method):
        x = torch.cat([points(40, 3), torch.full((12, 3), 0.25, dtype=torch.float64)])
        symmetry, distance = symmetry_distance_degree(x, 10, method)
        assert torch.isfinite(symmetry).all() and torch.isfinite(distance).all()
        assert symmetry[40:].tolist() == [0.0] * 12 and distance[40:].tolist() == [1.0] * 12

    def test_rotation_scale_and_shift_change_no_degree(self):
        x = points(200, 3)
        turn = torch.from_numpy(special_ortho_group(3, seed=3).rvs())
        assert float((degrees(7.3 * x @ turn + 2.0) - degrees(x)).abs().max()) < 1e-9

    def test_nor_do_they_where_distances_are_tied(self):
        """Ties are told within 1e-10, so rounding does not choose among equals."""
        x = torch.cartesian_prod(torch.arange(12.0), torch.arange(12.0)).double()
        x = torch.cat([x, torch.tensor([[20.0, 20.0], [15.0, 3.0]], dtype=torch.float64)])
        turn = torch.from_numpy(special_ortho_group(2, seed=3).rvs())
        assert float((degrees(0.1 * x @ turn - 1 / 3) - degrees(x)).abs().max()) < 1e-9

    def test_in_many_columns_the_symmetry_ratio_says_nothing(self):
        """The mirror images are nearest to the point itself; not a fault of the computation."""
        x = points(150, 100)
        assert float(symmetry_distance_degree(x, 10)[0].min()) > 0.95


class TestCut:
    def test_the_papers_worked_example(self):
        """It tells rounding half up from half to even, positions from 1 from those from 0, and no interpolation."""
        degree = torch.tensor(EXAMPLE, dtype=torch.float64)
        q1, q3 = quartiles(degree)
        assert (float(q1), float(q3)) == (0.35, 0.72)
        assert float(upper_bound(degree, 1.5)) == pytest.approx(1.275)
        assert degree[degree > upper_bound(degree, 1.5)].tolist() == [2.07, 2.25]
        assert not np.isclose(np.percentile(EXAMPLE, 25), 0.35)

    @pytest.mark.parametrize(("n", "first", "third"), [(1, 1, 1), (2, 1, 2), (6, 2, 5), (10, 3, 8), (14, 4, 11)])
    def test_positions_are_rounded_as_matlab_does(self, n, first, third):
        """2.5 of 10 is 3, not 2; 0.5 of 2 is 1, not 0."""
        ordered = torch.arange(1.0, n + 1, dtype=torch.float64)
        shuffled = ordered[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
        assert tuple(map(float, quartiles(shuffled))) == (first, third)

    def test_flags_do_not_depend_on_norm(self):
        x = torch.cat([points(150, 2), 6 * points(10, 2, seed=5)])
        symmetry, distance = symmetry_distance_degree(x, 10)
        raw = symmetry - distance
        normed = normalise(raw, raw.min(), raw.max())
        assert (float(normed.min()), float(normed.max())) == (0.0, 1.0)
        flags = raw > upper_bound(raw, 0.5)
        assert torch.equal(flags, normed > upper_bound(normed, 0.5)) and 0 < flags.sum() < 80

    def test_equal_degrees_become_0_and_flag_none(self):
        equal = torch.full((9,), -0.25, dtype=torch.float64)
        normed = normalise(equal, equal.min(), equal.max())
        assert normed.tolist() == [0.0] * 9 and not (normed > upper_bound(normed, 0.5)).any()

    def test_not_all_can_be_flagged(self):
        degree = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert (degree <= upper_bound(degree, 0.0)).double().mean() >= 0.75


def peaks_by_matrix(x: np.ndarray, clusters: int, pct: float, kernel: str) -> np.ndarray:
    """DPC with the whole matrix of distances."""
    n = len(x)
    d = np.sqrt(((x[:, None] - x[None]) ** 2).sum(axis=2))
    pairs = np.sort(d[np.triu_indices(n, 1)])
    d_c = pairs[max(1, int(len(pairs) * pct / 100 + 0.5)) - 1]
    weight = np.exp(-((d / d_c) ** 2)) if kernel == "gaussian" else (d < d_c).astype(float)
    rho = weight.sum(axis=1) - np.diag(weight)
    order = sorted(range(n), key=lambda i: (-round(rho[i], 9), i))
    delta, denser = np.zeros(n), np.zeros(n, dtype=int)
    for place, i in enumerate(order[1:], 1):
        before = order[:place]
        denser[i] = min(before, key=lambda j: d[i, j])
        delta[i] = d[i, denser[i]]
    delta[order[0]] = delta.max()
    label = np.full(n, -1)
    for number, i in enumerate(sorted(order, key=lambda i: -rho[i] * delta[i])[:clusters]):
        label[i] = number
    for i in order:
        if label[i] < 0:
            label[i] = label[denser[i]]
    return label


class TestClustering:
    @pytest.mark.parametrize("pct", [0.01, 2.0, 37.0, 100.0])
    def test_the_distance_at_a_share_of_the_pairs(self, pct):
        x = points(90, 3).numpy()
        pairs = np.sort(pdist(x))
        assert distance_at(x, pct) == pytest.approx(pairs[max(1, int(len(pairs) * pct / 100 + 0.5)) - 1], rel=1e-12)

    @pytest.mark.parametrize("kernel", ["gaussian", "cutoff"])
    def test_density_peaks_in_blocks_are_those_of_the_matrix(self, kernel, monkeypatch):
        monkeypatch.setattr("lightning_modules.symmetry_outlier.clustering.BLOCK_NUMBERS", 500)
        x = np.concatenate([points(40, 2, seed).numpy() + 4 * np.array([seed, seed % 2]) for seed in range(3)])
        assert np.array_equal(density_peaks(x, 3, 4.0, kernel), peaks_by_matrix(x, 3, 4.0, kernel))

    @pytest.mark.parametrize("method", ["dpc", "single", "average", "kmeans"])
    def test_clusters_that_lie_apart_are_found_in_their_number(self, method):
        true = np.repeat(np.arange(4), 25)
        x = 0.2 * points(100, 2).numpy() + 9 * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[true]
        clustering = Clustering(method, "classes", pct=2.0, kernel="gaussian", n_init=3, seed=0)
        found = clustering.fit_predict(x, 4)
        assert found.dtype == np.int64
        assert len({(a, b) for a, b in zip(found.tolist(), true.tolist(), strict=True)}) == len(set(found)) == 4

    def test_more_clusters_than_points_are_refused(self):
        clustering = Clustering("single", 5, pct=2.0, kernel="gaussian", n_init=1, seed=0)
        with pytest.raises(InputError, match=r"4 points that are no outliers cannot make 5 clusters: lower"):
            clustering.fit_predict(points(4, 2).numpy(), 5)

    def test_a_width_of_zero_is_refused(self):
        x = np.concatenate([np.zeros((60, 2)), points(10, 2).numpy()])
        with pytest.raises(InputError, match=r"2 % of all pairs of points are equal.*model\.clustering\.pct"):
            density_peaks(x, 2, 2.0, "gaussian")

    def test_many_points_are_warned_of(self, monkeypatch):
        monkeypatch.setattr("lightning_modules.symmetry_outlier.clustering.MANY_POINTS", 50)
        with pytest.warns(UserWarning, match="compares all pairs of 60 points"):
            Clustering("dpc", 2, pct=5.0, kernel="gaussian", n_init=1, seed=0).fit_predict(points(60, 2).numpy(), 2)


@pytest.mark.parametrize("r", [0.5, 0.0])
def test_a_run_has_the_ratios_flags_and_clusters_of_the_equations(tmp_path, r):
    """Two rows far off in column a: they are handed out after, and the others are not scaled anew without them.

    With r = 0 the cut is a row's own degree, and that row is kept.
    """
    generator = np.random.default_rng(0)
    a, b = generator.uniform(0, 1, 62) + 9 * (np.arange(62) % 2), generator.normal(np.repeat([0, 0.6], 31), 0.1)
    a[[30, 61]] = 900, 1000
    lines = [f"{x!r},{y!r},{'low' if row < 31 else 'high'}" for row, (x, y) in enumerate(np.c_[a, b].tolist())]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,kind", *lines]) + "\n")
    train(
        tmp_path / "run", "experiment=symmetry_outlier_table", f"data.root={tmp_path}/t.csv", "data.reader.label=kind",
        "model.clustering.clusters=classes", "model.clustering.method=average", "model.k=5", f"model.r={r}",
        "trainer=cpu", "trainer.enable_progress_bar=false", "callbacks.figures=null",
    )  # fmt: skip
    found = {name: value.numpy() for name, value in state_of(tmp_path / "run").items()}

    def between_0_and_1(x: np.ndarray) -> np.ndarray:
        return (x - x.min(axis=0)) / np.ptp(x, axis=0)

    def two_clusters(x: np.ndarray) -> np.ndarray:
        return fcluster(linkage(x, "average"), 2, "maxclust")

    x = between_0_and_1(np.stack([a, b], axis=1))
    R_s, R_d = by_loops(x, 5)
    assert found["points"] == pytest.approx(x, abs=1e-12)
    assert found["symmetry"] == pytest.approx(R_s, abs=1e-9) and found["distance"] == pytest.approx(R_d, abs=1e-9)
    degree = between_0_and_1(R_s - R_d)
    assert found["degree"] == pytest.approx(degree, abs=1e-9)
    ordered = np.sort(degree)
    bound = ordered[46] + r * (ordered[46] - ordered[15])  # places round(46.5) = 47 and round(15.5) = 16, from 1
    kept = degree <= bound
    assert np.array_equal(found["kept"], kept) and not kept[[30, 61]].any()
    cluster = np.zeros(62, dtype=int)
    cluster[kept] = two_clusters(x[kept])
    cluster[~kept] = cluster[kept][cdist(x[~kept], x[kept]).argmin(axis=1)]
    same = cluster[:, None] == cluster
    assert np.array_equal(found["clusters"][:, None] == found["clusters"], same)
    anew = two_clusters(between_0_and_1(x[kept]))
    assert not np.array_equal(anew[:, None] == anew, same[np.ix_(kept, kept)])
