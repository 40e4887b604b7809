"""Iterative stratification: against its own algorithm written as loops, and for what it is for."""

import numpy as np
import pytest

from datamodules.stratification import iterative_stratification
from runs.errors import InputError

SHARES = [0.7, 0.2, 0.1]


def rare_and_frequent(samples: int, seed: int) -> np.ndarray:
    """Labels as in photographs: from one in two images to a few in all, some images without any."""
    frequencies = [0.5, 0.3, 0.1, 0.05, 0.03, 0.02, 0.02, 0.01]
    return np.random.default_rng(seed).random((samples, len(frequencies))) < frequencies


def error_of(labels: np.ndarray, part: np.ndarray) -> float:
    """Label distribution (Sechidis et al., Section 4): mean difference of the odds in a part from those in all."""
    odds = labels.sum(0) / (len(labels) - labels.sum(0))
    errors = []
    for p in range(len(SHARES)):
        inside = labels[part == p]
        errors.append(np.abs(inside.sum(0) / np.maximum(len(inside) - inside.sum(0), 1) - odds))
    return float(np.mean(errors))


def test_each_sample_is_in_one_part_and_the_sizes_are_the_shares():
    labels = rare_and_frequent(1000, 0)
    part = iterative_stratification(labels, SHARES, seed=1)
    assert part.shape == (1000,) and set(part.tolist()) == {0, 1, 2}
    sizes = np.bincount(part)
    assert np.abs(sizes - 1000 * np.array(SHARES)).max() <= len(labels[0])


@pytest.mark.parametrize("seed", range(5))
def test_label_shares_are_closer_than_those_of_every_random_split_tried(seed):
    labels = rare_and_frequent(400, seed)
    ours = error_of(labels, iterative_stratification(labels, SHARES, seed))
    generator = np.random.default_rng(seed)
    at_random = [error_of(labels, generator.choice(3, len(labels), p=SHARES)) for _ in range(20)]
    assert ours < min(at_random) and ours < 0.35 * np.mean(at_random)


def test_a_label_of_three_samples_reaches_all_parts_of_equal_shares():
    labels = np.zeros((90, 2), bool)
    labels[:3, 0] = True
    labels[:, 1] = True
    part = iterative_stratification(labels, [1 / 3, 1 / 3, 1 / 3], seed=0)
    assert sorted(part[:3].tolist()) == [0, 1, 2]
    assert np.bincount(part).tolist() == [30, 30, 30]


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    labels = rare_and_frequent(200, 3)
    first, again, other = (iterative_stratification(labels, SHARES, seed) for seed in (4, 4, 5))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_every_choice_is_one_that_the_published_algorithm_allows():
    """Replays the split as Algorithm 1 says it: whatever order the lots gave, each sample must go to a part that
    wants most of the rarest label that was left, and of those to one that wants most samples."""
    labels = rare_and_frequent(120, 7)[:, :5]
    part = iterative_stratification(labels, SHARES, seed=2)
    n = len(labels)
    wanted = [n * share for share in SHARES]
    wanted_of = [[int(labels[:, c].sum()) * share for share in SHARES] for c in range(5)]
    left = set(range(n))

    def allowed(demand):
        best = [j for j in range(3) if demand[j] >= max(demand) - 1e-9]
        return [j for j in best if wanted[j] >= max(wanted[k] for k in best) - 1e-9]

    def replay(members, demand):
        """Finds an order of the members in which each choice is allowed."""
        members = set(members)
        while members:
            fitting = [s for s in members if int(part[s]) in allowed(demand)]
            assert fitting, "no sample of the label could have been dealt to where it is"
            # Samples that are dealt to the same part and have the same labels are exchangeable.
            sample = fitting[0]
            j = int(part[sample])
            members.discard(sample)
            left.discard(sample)
            wanted[j] -= 1
            for c in range(5):
                if labels[sample, c]:
                    wanted_of[c][j] -= 1

    while any(labels[s].any() for s in left):
        counts = [sum(labels[s, c] for s in left) for c in range(5)]
        rarest = min((c for c in range(5) if counts[c]), key=lambda c: counts[c])
        replay([s for s in left if labels[s, rarest]], wanted_of[rarest])
    replay(list(left), wanted)


def test_samples_without_labels_fill_the_parts_up():
    labels = np.zeros((100, 3), bool)
    labels[:10, 0] = True
    part = iterative_stratification(labels, SHARES, seed=0)
    assert np.bincount(part).tolist() == [70, 20, 10]
    assert np.bincount(part[:10]).tolist() == [7, 2, 1]


def test_the_order_of_the_samples_in_the_table_is_not_the_order_of_the_split():
    labels = np.ones((100, 1), bool)
    part = iterative_stratification(labels, [0.5, 0.5], seed=0)
    runs = 1 + int((part[1:] != part[:-1]).sum())
    assert runs > 20


@pytest.mark.parametrize("shares", [[0.7, 0.2], [1.2, -0.2], [], [0.5, 0.5, 0.0]])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(InputError, match="must be above 0 and add up to 1"):
        iterative_stratification(np.ones((4, 1), bool), shares, seed=0)
