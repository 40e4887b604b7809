"""Balanced sampling with memory: against the rule written out, over epochs, and resumed."""

import math
from collections import Counter

import numpy as np
import pytest

from datamodules.anomaly_sampling import (
    BalancedWithMemory,
    EveryImage,
    PlannedSampler,
    View,
    as_view,
    draw_probabilities,
)
from datamodules.sampling import EpochPosition

NORMAL = list(range(0, 40))
DEFECTIVE = list(range(40, 45))


def balanced(**changes) -> BalancedWithMemory:
    settings = {"normal": NORMAL, "defective": DEFECTIVE, "flips": True, "per_batch": False, "seed": 3}
    return BalancedWithMemory(**{**settings, **changes})


def deal(plan, epoch=0, done=0, rank=0, world=1, batch=4) -> list[View]:
    return list(PlannedSampler(plan, batch, world, lambda: EpochPosition(epoch, done, rank, world)))


def test_an_epoch_has_every_defect_in_four_flips_and_as_many_normal_images():
    views = balanced().views(0)
    assert len(views) == 2 * 4 * 5 == balanced().size
    defective = Counter(view for view in views if view.index >= 40)
    assert defective == Counter({View(index, flip): 1 for index in DEFECTIVE for flip in range(4)})
    normal = [view for view in views if view.index < 40]
    assert len({view.index for view in normal}) == 20  # without replacement
    assert all(view.flip == 0 for view in normal)
    assert balanced(flips=False).size == 10


def test_ksdd2_has_1968_views_and_62_batches():
    plan = BalancedWithMemory(list(range(2085)), list(range(2085, 2331)), True, False, 0)
    assert plan.size == 1968
    assert math.ceil(len(deal(plan, batch=32)) / 32) == 62


def test_probabilities_are_those_of_the_rule():
    used = np.array([0, 1, 2, 2, 5])
    weights = []
    rarity = [1 - f / 5 for f in used]
    median = sorted(rarity)[2]
    for q in rarity:
        weights.append((q - median + 1) ** (4 * math.log(5)))
    assert np.allclose(draw_probabilities(used, 2), np.array(weights) / sum(weights))
    assert np.allclose(draw_probabilities(np.zeros(4, dtype=int), 2), 0.25)  # the first epoch is uniform


def test_enough_images_can_be_drawn_even_where_the_rule_gives_some_none():
    used = np.array([3, 3, 0, 0, 0])
    probabilities = draw_probabilities(used, 4)
    assert (probabilities > 0).all() and probabilities.sum() == pytest.approx(1)
    assert probabilities[:2].sum() < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_after_ten_epochs_all_normal_images_were_used_alike(seed):
    plan = balanced(normal=list(range(40)), seed=seed)
    used = plan.used(10)
    assert used.sum() == 10 * 20
    assert used.max() - used.min() <= 2


def test_memory_counts_what_was_shown():
    plan = balanced()
    shown = Counter(view.index for epoch in range(6) for view in balanced().views(epoch) if view.index < 40)
    assert plan.used(6).tolist() == [shown[index] for index in NORMAL]


def test_without_memory_use_would_be_uneven():
    """The control: plain draws part by more than two."""
    generator = np.random.default_rng(0)
    used = sum(np.bincount(generator.choice(40, 20, replace=False), minlength=40) for _ in range(10))
    assert used.max() - used.min() > 2


def test_a_run_resumed_at_epoch_five_draws_what_an_unbroken_one_draws():
    unbroken = balanced()
    epochs = [unbroken.views(epoch) for epoch in range(10)]
    resumed = balanced()
    assert [resumed.views(epoch) for epoch in range(5, 10)] == epochs[5:]
    assert resumed.views(2) == epochs[2]  # and back
    assert deal(resumed, epoch=7, done=3) == epochs[7][12:]


def test_epochs_and_seeds_differ():
    assert balanced().views(0) != balanced().views(1)
    assert balanced().views(0) != balanced(seed=4).views(0)


def test_too_few_normal_images_are_drawn_more_than_once():
    plan = balanced(normal=[0, 1, 2])
    views = [view.index for view in plan.views(3) if view.index < 40]
    assert len(views) == 20 and set(views) <= {0, 1, 2}


def test_per_batch_every_batch_is_exactly_half_and_half():
    views = deal(balanced(per_batch=True), batch=4)
    for first in range(0, len(views), 4):
        assert sum(view.index >= 40 for view in views[first : first + 4]) == 2
    plain = deal(balanced(), batch=4)
    assert any(sum(view.index >= 40 for view in plain[first : first + 4]) != 2 for first in range(0, 40, 4))


def test_every_image_comes_once_and_the_last_batch_may_be_smaller():
    views = deal(EveryImage(10, 0), batch=4)
    assert sorted(view.index for view in views) == list(range(10)) and all(view.flip == 0 for view in views)
    assert views != deal(EveryImage(10, 0), epoch=1, batch=4)
    assert deal(EveryImage(10, 0), done=2, batch=4) == views[8:]


@pytest.mark.parametrize("plan", [EveryImage(10, 0), balanced(), balanced(per_batch=True)])
def test_processes_share_the_batches_of_one_process(plan):
    whole = deal(plan, epoch=2, batch=4)
    parts = [deal(plan, epoch=2, batch=2, rank=rank, world=2) for rank in range(2)]
    assert len(parts[0]) == len(parts[1])
    joined = []
    for first in range(0, len(parts[0]), 2):
        joined += parts[0][first : first + 2] + parts[1][first : first + 2]
    assert joined[: len(whole)] == whole


def test_an_odd_epoch_is_filled_up_so_that_processes_have_equally_many():
    parts = [deal(EveryImage(7, 0), batch=2, rank=rank, world=3) for rank in range(3)]
    assert [len(part) for part in parts] == [3, 3, 3]
    assert {view.index for part in parts for view in part} == set(range(7))


def test_plain_numbers_are_images_as_they_are():
    assert as_view(5) == View(5, 0) and as_view(View(2, 3)) == View(2, 3)
