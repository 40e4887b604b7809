"""Rounds of the refinement against the algorithm written out in loops; the traps of the method."""

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from components.graph import edge_count, knn_graph, spectral_embedding
from lightning_modules.modularity_graph_refinement import ModularityRefinementModule
from lightning_modules.modularity_graph_refinement import clustering as clustering_file
from lightning_modules.modularity_graph_refinement.clustering import Clustering
from lightning_modules.modularity_graph_refinement.graph_builders import NeighbourGraph, knn
from lightning_modules.modularity_graph_refinement.module import ROUND_COLUMNS, Pruning, Stopping, centroids
from runs.composition import compose_config, group_choices, to_plain
from runs.errors import InputError

Q = ROUND_COLUMNS.index("modularity")
REMOVED = ROUND_COLUMNS.index("removed")


def make(p=5, k=6, pairs="farthest", space="embedding", rule="best", patience=10, **cluster):
    settings = {"method": "spectral", "laplacian": "sym", "least_component": 0.5, "n_init": 10, "seed": 0, **cluster}
    return ModularityRefinementModule(
        builder=knn,
        graph=NeighbourGraph(k=k, weight="binary", symmetrize="or"),
        cluster=Clustering(p=p, **settings),
        prune=Pruning(pairs=pairs, space=space),
        stop=Stopping(rule=rule, patience=patience, tol=1e-9),
        num_classes=p,
    )


def blobs(seed=0, n=300):
    """Five groups on a circle, overlapping."""
    generator = np.random.default_rng(seed)
    angle = 2 * np.pi * (np.arange(n) % 5) / 5
    return np.column_stack([np.cos(angle), np.sin(angle)]) + generator.normal(0, 0.32, (n, 2))


def run(module, points, rounds=6):
    for t in range(rounds):
        module.take(module.refine(points, last=t == rounds - 1))
        if module.is_finished():
            break
    return module.rounds.numpy()


def test_rounds_are_those_of_algorithm_1_in_loops():
    points, p = blobs(), 5
    module = make()
    table = run(module, points)
    graph = nx.from_scipy_sparse_array(knn_graph(points, 6, "binary", "or"))
    removed_in_all = 0
    for row in table:
        A = sparse.csr_array(nx.to_scipy_sparse_array(graph, nodelist=range(300), dtype=float))
        U = spectral_embedding(A, p, "sym", 0, 30)
        labels = KMeans(p, n_init=10, random_state=0).fit_predict(U)
        mean = [np.mean([U[i] for i in range(300) if labels[i] == c], axis=0) for c in range(p)]
        for i in range(p):
            far = max((j for j in range(p) if j != i), key=lambda j: np.linalg.norm(mean[i] - mean[j]))
            gone = [(u, v) for u, v in graph.edges if {labels[u], labels[v]} == {i, far}]
            graph.remove_edges_from(gone)
            removed_in_all += len(gone)
        clusters = [set(np.flatnonzero(labels == c).tolist()) for c in range(p)]
        assert row[Q] == pytest.approx(nx.community.modularity(graph, clusters), abs=1e-10)
        assert row[ROUND_COLUMNS.index("edges")] == graph.number_of_edges()
        assert row[ROUND_COLUMNS.index("components")] == nx.number_connected_components(graph)
    assert removed_in_all == table[:, REMOVED].sum() > 0
    assert nx.utils.graphs_equal(graph, nx.from_scipy_sparse_array(module.graph("current")))


def test_both_directions_of_a_pair_go_though_the_relation_is_not_symmetric():
    module = make(p=3)
    pairs = module.pairs_to_part(np.array([[0.0], [1.0], [5.0]]), 0)  # 0 and 1 have 2; 2 has 0
    assert pairs.tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    nearest = make(p=3, pairs="nearest").pairs_to_part(np.array([[0.0], [1.0], [5.0]]), 0)
    assert nearest.tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def test_other_choices_of_pairs():
    mean = np.random.default_rng(0).normal(size=(6, 2))
    assert not make(pairs="none").pairs_to_part(mean, 0).any()
    assert np.array_equal(make(pairs="all_inter").pairs_to_part(mean, 0), ~np.eye(6, dtype=bool))
    assert not make(pairs="farthest").pairs_to_part(mean[:1], 0).any()  # one cluster has no other
    drawn = [make(pairs="random").pairs_to_part(mean, t) for t in range(20)]
    assert all(
        np.array_equal(pairs, pairs.T) and pairs.any(axis=1).all() and not pairs.diagonal().any() for pairs in drawn
    )
    assert len({pairs.tobytes() for pairs in drawn}) > 10  # each round its own
    assert np.array_equal(drawn[3], make(pairs="random").pairs_to_part(mean, 3))


def test_centroids_are_means():
    labels = np.array([0, 1, 0, 2, 2])
    space = np.arange(10.0).reshape(5, 2)
    assert centroids(space, labels).tolist() == [[2, 3], [2, 3], [7, 8]]


def table_of(values, removed=1):
    table = np.zeros((len(values), len(ROUND_COLUMNS)))
    table[:, Q], table[:, REMOVED] = values, removed
    return table


DIPS_THEN_PEAKS = [0.8650, 0.8646, 0.8584, 0.8819, 0.8626]


def test_the_answer_is_the_round_of_the_highest_modularity_and_strict_stopping_ends_before_it():
    best, strict = make(rule="best", patience=3), make(rule="strict")
    assert best.best_round(table_of(DIPS_THEN_PEAKS)) == 3
    assert not any(best.finished(table_of(DIPS_THEN_PEAKS[: t + 1])) for t in range(5))
    assert not strict.finished(table_of(DIPS_THEN_PEAKS[:1]))
    assert strict.finished(table_of(DIPS_THEN_PEAKS[:2])) and strict.best_round(table_of(DIPS_THEN_PEAKS[:2])) == 0
    assert make(patience=2).finished(table_of(DIPS_THEN_PEAKS[:3]))
    assert best.finished(table_of([0.5], removed=0))
    assert best.best_round(table_of([0.5, 0.5 + 1e-12])) == 0  # within tol


def test_a_graph_that_is_pruned_too_far_is_not_the_answer():
    """Later graphs fall apart and are not kept; that happens where tiny components may take the eigenvectors."""
    module = make(least_component=None)
    table = run(module, blobs(2), rounds=8)
    best = module.best_round(table)
    assert best < len(table) - 1
    assert table[best, Q] == table[:, Q].max() > table[-1, Q]
    assert edge_count(module.graph("best")) == table[best, ROUND_COLUMNS.index("edges")]
    assert edge_count(module.graph("best")) > edge_count(module.graph("current"))
    components = ROUND_COLUMNS.index("components")
    assert table[-1, components] > table[best, components]


def test_the_answers_graph_is_clustered_again_and_its_own_labels_are_kept():
    points = blobs()
    module = make()
    table = run(module, points)
    best = module.best_round(table)
    labels, _ = module.divide(module.graph("best"), points)
    assert np.array_equal(module.final_labels.numpy(), labels)
    replay = make()
    for _ in range(best + 1):
        replay.take(replay.refine(points, last=False))
    assert torch.equal(module.best_labels, replay.current_labels)


def test_the_last_clustering_is_of_the_answers_graph_where_worse_rounds_follow_it():
    points, module = blobs(2), make(least_component=None)
    table = run(module, points, rounds=8)
    assert module.best_round(table) < len(table) - 1
    final = module.final_labels.numpy()
    assert np.array_equal(final, module.divide(module.graph("best"), points)[0])
    assert not np.array_equal(final, module.divide(module.graph("current"), points)[0])
    assert not np.array_equal(final, module.best_labels.numpy()) and len(np.unique(final)) == 5


@pytest.mark.parametrize("n_init", [1, 10])
def test_k_means_has_as_many_starts_as_it_is_told_and_the_seed(monkeypatch, n_init):
    made = []

    class Recording(KMeans):
        def __init__(self, n_clusters, **settings):
            made.append((n_clusters, settings))
            super().__init__(n_clusters, **settings)

    monkeypatch.setattr(clustering_file, "KMeans", Recording)
    for method in ("spectral", "kmeans"):
        make(method=method, n_init=n_init, seed=3).divide(knn_graph(blobs(), 6, "binary", "or"), blobs())
    assert made == 2 * [(5, {"init": "k-means++", "n_init": n_init, "random_state": 3})]


def test_k_means_keeps_the_best_of_its_starts():
    points = np.random.default_rng(0).uniform(size=(300, 2))  # no groups: starts differ

    def spread(labels):
        return sum(np.square(points[labels == c] - points[labels == c].mean(axis=0)).sum() for c in range(5))

    graph = knn_graph(points, 6, "binary", "or")
    by_starts = [spread(make(method="kmeans", n_init=n).divide(graph, points)[0]) for n in (1, 10)]
    assert by_starts[1] < by_starts[0]


def test_the_default_is_the_symmetric_laplacian_on_ten_neighbours():
    config = compose_config(["experiment=modularity_graph_refinement_pendigits", "data.root=x", "paths.run_dir=unused"])
    model = to_plain(config)["model"]
    assert (model["cluster"]["laplacian"], model["graph"]["k"]) == ("sym", 10)


def test_flipped_eigenvectors_give_the_same_graph_and_partition(monkeypatch):
    points = blobs()
    plain, flipped = make(), make()
    run(plain, points)
    embed = Clustering.embedding
    signs = np.array([1, -1, -1, 1, -1])
    monkeypatch.setattr(Clustering, "embedding", lambda self, graph: embed(self, graph) * signs)
    run(flipped, points)
    assert adjusted_rand_score(plain.best_labels, flipped.best_labels) == 1.0
    assert (plain.graph("current") != flipped.graph("current")).nnz == 0


def test_in_feature_space_the_farthest_clusters_share_no_edge():
    points = np.random.default_rng(0).uniform(0, 1, (600, 2)) * [6, 1]  # one strip: only neighbours touch
    feature = run(make(space="feature"), points)
    assert feature[:, REMOVED].sum() == 0 and len(feature) == 1
    assert run(make(space="embedding"), points)[:, REMOVED].sum() > 0


def test_without_pruning_one_round_leaves_the_first_graph():
    points = blobs()
    module = make(pairs="none")
    assert len(run(module, points)) == 1
    assert (module.graph("best") != knn_graph(points, 6, "binary", "or")).nnz == 0
    assert torch.equal(module.best_labels, module.first_labels)


def test_a_round_never_changes_the_state_by_itself_and_repeats_to_the_bit():
    module, points = make(), blobs()
    module.take(module.refine(points, last=False))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    once, again = module.refine(points, last=False), module.refine(points, last=False)
    for name, value in module.state_dict().items():  # unscored rounds are NaN
        assert torch.equal(before[name].nan_to_num(-1), value.nan_to_num(-1)), name
    for name in ("current_indptr", "current_indices", "current_weights", "current_labels"):
        assert torch.equal(once[name], again[name])


@pytest.mark.parametrize("cluster", [{"method": "louvain"}, {"method": "kmeans"}, {"laplacian": "sym_row"}])
def test_other_clusterings_go_through_the_same_rounds(cluster):
    module = make(**cluster)
    table = run(module, blobs(), rounds=3)
    assert np.isfinite(table[:, Q]).all()


def test_too_few_points_for_k_and_for_p_are_refused_and_duplicates_are_not():
    with pytest.raises(InputError, match=r"model\.graph\.k=6 must be from 1 to 4, one less than the points"):
        make().refine(np.arange(10.0).reshape(5, 2), last=False)
    few = np.repeat(np.arange(4.0), 10)[:, None]
    with pytest.raises(InputError, match=r"model\.cluster\.p=5 clusters need at least 5 different points, found 4"):
        make().refine(few, last=False)
    doubled = np.repeat(blobs(n=100), 2, axis=0)
    assert run(make(), doubled, rounds=2)[0, ROUND_COLUMNS.index("edges")] > 0


@pytest.mark.parametrize(("changed", "sentence"), [({"p": 0}, r"cluster\.p=0"), ({"patience": 0}, r"patience=0")])
def test_settings_that_make_no_sense_are_refused(changed, sentence):
    with pytest.raises(InputError, match=sentence):
        make(**changed)


def test_every_graph_of_every_variant_is_clustered_with_the_same_starts_and_seed():
    """One start of k-means, or a lucky seed for one of the rows, would fake a gain."""
    for variant in group_choices("variant"):
        if variant.startswith("modularity_graph_refinement_"):
            words = [
                "experiment=modularity_graph_refinement_digits",
                f"variant={variant}",
                "seed=7",
                "paths.run_dir=unused",
            ]
            cluster = to_plain(compose_config(words))["model"]["cluster"]
            assert (cluster["n_init"], cluster["seed"]) == (10, 7), variant
