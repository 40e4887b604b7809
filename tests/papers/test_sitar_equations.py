"""Super images and losses of SITAR against independent computations written from the paper."""

import math

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.sitar.losses import group_contrast, group_means, nt_xent
from lightning_modules.sitar.super_image import (
    grid_side,
    make_super_image,
    reorder_frames,
    split_super_image,
)

TAU = 0.5


def h(a: torch.Tensor, b: torch.Tensor) -> float:
    cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return math.exp(cosine / TAU)


def eq_2_by_double_loop(u: torch.Tensor, v: torch.Tensor) -> float:
    """Eq. 2 word by word, averaged over both directions."""
    B, total = len(u), 0.0
    for here, there in ((u, v), (v, u)):
        for i in range(B):
            positive = h(here[i], there[i])
            negatives = 0.0
            for k in range(B):
                if k != i:
                    negatives += h(here[i], here[k]) + h(here[i], there[k])
            total += -math.log(positive / (positive + negatives))
    return total / (2 * B)


def two_views(B: int, D: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(B, D, generator=g), torch.randn(B, D, generator=g)


def test_nt_xent_equals_a_double_loop_written_from_eq_2():
    u, v = two_views(4, 7)
    assert float(nt_xent(u, v, TAU)) == pytest.approx(eq_2_by_double_loop(u, v), rel=1e-6)


def test_nt_xent_of_equal_orthogonal_views_has_its_closed_form():
    B = 5
    u = torch.eye(B) * torch.arange(1.0, B + 1)  # lengths must not matter
    expected = -math.log(math.exp(1 / TAU) / (math.exp(1 / TAU) + 2 * (B - 1)))
    assert float(nt_xent(u, u, TAU)) == pytest.approx(expected, rel=1e-6)


def test_nt_xent_takes_negatives_from_both_paths():
    u, v = two_views(4, 7)
    across = F.normalize(u) @ F.normalize(v).T / TAU
    one_path = (F.cross_entropy(across, torch.arange(4)) + F.cross_entropy(across.T, torch.arange(4))) / 2
    assert float(nt_xent(u, v, TAU)) > float(one_path) + 0.1


def test_nt_xent_of_valid_items_equals_nt_xent_of_those_items_alone():
    u, v = two_views(6, 5)
    valid = torch.tensor([True, False, True, True, False, True])
    assert torch.allclose(nt_xent(u, v, TAU, valid), nt_xent(u[valid], v[valid], TAU))


def test_a_detached_fast_view_gets_no_gradient_and_the_slow_view_does():
    u, v = (x.requires_grad_() for x in two_views(4, 7))
    nt_xent(u.detach(), v, TAU).backward()
    assert u.grad is None
    assert v.grad.abs().sum() > 0


def test_groups_of_one_clip_each_make_the_group_loss_equal_the_instance_loss():
    u, v = two_views(4, 7)
    labels = torch.tensor([3, 0, 5, 2])
    loss, share = group_contrast(u, v, labels, labels, num_classes=6, temperature=TAU)
    assert float(loss) == pytest.approx(eq_2_by_double_loop(u, v), rel=1e-6)
    assert float(share) == 1.0


def test_group_loss_contrasts_the_means_of_classes_that_both_paths_name():
    u, v = two_views(6, 4)
    labels_u = torch.tensor([0, 0, 1, 2, 2, 3])
    labels_v = torch.tensor([0, 1, 1, 2, 4, 4])
    means_u = torch.stack([u[labels_u == c].mean(0) for c in (0, 1, 2)])
    means_v = torch.stack([v[labels_v == c].mean(0) for c in (0, 1, 2)])
    loss, share = group_contrast(u, v, labels_u, labels_v, num_classes=5, temperature=TAU)
    assert float(loss) == pytest.approx(eq_2_by_double_loop(means_u, means_v), rel=1e-6)
    assert float(share) == pytest.approx(3 / 5)


def test_group_means_average_the_members_and_mark_absent_classes():
    p = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    means, present = group_means(p, torch.tensor([2, 2, 0]), num_classes=4)
    assert means.tolist() == [[5.0, 5.0], [0.0, 0.0], [2.0, 1.0], [0.0, 0.0]]
    assert present.tolist() == [True, False, True, False]


@pytest.mark.parametrize("labels_v", [[1, 1, 1], [2, 2, 2]], ids=["one_common", "none_common"])
def test_fewer_than_two_common_classes_give_exactly_zero_with_a_graph(labels_v):
    u, v = (x.requires_grad_() for x in two_views(3, 4))
    loss, _ = group_contrast(u, v, torch.tensor([1, 1, 1]), torch.tensor(labels_v), num_classes=4, temperature=TAU)
    assert float(loss.detach()) == 0.0
    loss.backward()
    for grad in (u.grad, v.grad):
        assert torch.equal(grad, torch.zeros_like(grad))


def test_losses_stay_in_float32_under_bfloat16_autocast():
    u, v = two_views(4, 7)
    labels = torch.tensor([0, 1, 1, 2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = nt_xent(u, v, TAU), group_contrast(u, v, labels, labels, 3, TAU)[0]
    plain = nt_xent(u, v, TAU), group_contrast(u, v, labels, labels, 3, TAU)[0]
    for low, full in zip(under_autocast, plain, strict=True):
        assert low.dtype == torch.float32
        assert torch.equal(low, full)
    assert nt_xent(u.bfloat16(), v.bfloat16(), TAU).dtype == torch.float32


@pytest.mark.parametrize(("frames", "side"), [(1, 1), (2, 2), (4, 2), (8, 3), (9, 3), (16, 4), (17, 5)])
def test_the_grid_is_the_smallest_square_that_holds_the_frames(frames, side):
    assert grid_side(frames) == side


@pytest.mark.parametrize(("frames", "grid", "cell"), [(8, 3, 192), (4, 2, 288), (16, 4, 144)])
def test_every_layout_of_the_paper_fills_a_canvas_of_576_pixels(frames, grid, cell):
    x = torch.zeros(1, frames, 3, cell, cell)
    assert make_super_image(x, grid, cell).shape == (1, 3, 576, 576)


def test_untiling_inverts_tiling_exactly():
    x = torch.randn(2, 8, 3, 6, 6)
    cells = split_super_image(make_super_image(x, 3, 6), 3)
    assert torch.equal(cells[:, :8], x)
    assert not cells[:, 8].any()


def test_frames_run_row_by_row_and_the_padding_cell_is_bottom_right():
    x = torch.arange(1.0, 9.0).view(1, 8, 1, 1, 1).expand(1, 8, 3, 2, 2)
    canvas = make_super_image(x, 3, 2)
    assert canvas[0, 0, ::2, ::2].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 0]]
    assert not canvas[0, :, 4:, 4:].any()


def test_frames_of_another_size_than_the_cell_are_refused():
    with pytest.raises(ValueError, match="do not fit a 3x3 grid"):
        make_super_image(torch.zeros(1, 10, 3, 4, 4), 3, 4)


def test_reverse_order_turns_time_around_and_leaves_the_padding_last():
    x = torch.arange(1.0, 9.0).view(1, 8, 1, 1, 1).expand(1, 8, 3, 1, 1)
    canvas = make_super_image(reorder_frames(x, "reverse"), 3, 1)
    assert canvas[0, 0].tolist() == [[8, 7, 6], [5, 4, 3], [2, 1, 0]]


@pytest.mark.parametrize("index", [None, torch.arange(64)], ids=["training", "evaluation"])
def test_random_order_draws_a_permutation_for_each_clip(index):
    torch.manual_seed(0)
    x = torch.arange(8).expand(64, 8)
    shuffled = reorder_frames(x, "random", index)
    assert torch.equal(shuffled.sort(dim=1).values, x)
    assert len({tuple(row) for row in shuffled.tolist()}) > 60
    # each frame lands everywhere about equally often
    assert (shuffled[:, 0].bincount(minlength=8) > 0).all()


def test_random_order_at_evaluation_depends_on_the_clip_alone():
    x = torch.arange(8).expand(5, 8)
    ids = torch.tensor([7, 900, 3, 12345, 8])
    whole = reorder_frames(x, "random", ids)
    torch.rand(3)
    parts = torch.cat([reorder_frames(x[:2], "random", ids[:2]), reorder_frames(x[2:], "random", ids[2:])])
    assert torch.equal(whole, parts)
