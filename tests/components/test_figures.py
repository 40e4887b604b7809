"""Shared pictures hold what they were given."""

import numpy as np

from components.figures import confusion_matrix, curve, image_rows, principal_plane


def test_image_rows_put_each_picture_under_its_caption():
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in range(3)]
    figure = image_rows([[(pictures[0], "a"), (pictures[1], "b")], [(pictures[2], "c")]])
    shown = [(ax.get_title(), ax.images[0].get_array()[0, 0, 0]) for ax in figure.axes if ax.images]
    assert shown == [("a", 0), ("b", 1), ("c", 2)]


def test_confusion_matrix_is_coloured_by_the_share_of_the_true_class():
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
    ax = confusion_matrix(counts, ["x", "y", "z"]).axes[0]
    assert ax.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0, 0, 0], [0, 0.5, 0.5]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y", "z"]
    assert sorted(text.get_text() for text in ax.texts) == ["1", "2", "2", "3"]


def test_a_curve_starts_at_the_epoch_it_is_told():
    line = curve([10.0, 20.0], "epoch", "accuracy", start=1).axes[0].lines[0]
    assert line.get_xydata().tolist() == [[1.0, 10.0], [2.0, 20.0]]


def test_the_plane_of_the_figures_shows_the_two_principal_axes():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(200, 5)) * [1, 9, 1, 4, 1]
    plane, share = principal_plane(points)
    np.testing.assert_allclose(np.abs(np.corrcoef(plane.T, points[:, [1, 3]].T)[[0, 1], [2, 3]]), 1, atol=0.02)
    assert np.array_equal(principal_plane(points[:, :2])[0], points[:, :2])
    assert principal_plane(points[:, :1])[0].shape == (200, 2)
    variance = points.var(axis=0)
    assert abs(share - variance[[1, 3]].sum() / variance.sum()) < 0.01
