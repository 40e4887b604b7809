"""Multi-label scores against loops written from their definitions, and scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, hamming_loss, label_ranking_average_precision_score, roc_auc_score

from components.metrics.label_sets import (
    ExampleF1,
    HardAUC,
    LabelRankingAveragePrecision,
    LabelSetScores,
    average_precision,
)


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    label = (generator.uniform(size=(60, 7)) < 0.3).astype(np.int64)
    predicted = np.where(generator.uniform(size=label.shape) < 0.8, label, 1 - label)
    label[:3], predicted[0], predicted[1, 2] = 0, 0, 1
    label[:, 6] = predicted[:, 6] = 0  # a label that never is
    return torch.from_numpy(predicted), torch.from_numpy(label)


def ranked_by_loop(scores, label, ties):
    """The equation of section 4.3, a row at a time."""
    means = []
    for s, y in zip(scores.tolist(), label.tolist(), strict=True):
        tie_break = {"high_index": lambda j: -j, "low_index": lambda j: j}.get(ties)
        if tie_break:
            order = sorted(range(len(s)), key=lambda j: (-s[j], tie_break(j)))
            rank = {j: place + 1 for place, j in enumerate(order)}
        else:
            rank = {j: sum(other >= s[j] for other in s) for j in range(len(s))}
        mine = [j for j, yes in enumerate(y) if yes]
        if mine:
            means.append(np.mean([sum(rank[other] <= rank[j] for other in mine) / rank[j] for j in mine]))
        else:
            means.append(np.nan)
    return means


@pytest.mark.parametrize("ties", ["high_index", "low_index", "pessimistic"])
@pytest.mark.parametrize("hard", [True, False])
def test_average_precision_is_the_equation_with_each_rule_for_ties(rows, ties, hard):
    predicted, label = rows
    scores = (
        predicted.double() if hard else torch.randint(0, 4, label.shape, generator=torch.Generator().manual_seed(0))
    )
    ours = average_precision(scores, label, ties)
    np.testing.assert_allclose(ours, ranked_by_loop(scores, label, ties), rtol=1e-12)
    assert float(ours.nan_to_num().max()) <= 1


def test_pessimistic_ties_are_scikit_learns_and_the_rules_differ_on_hard_scores(rows):
    predicted, label = rows
    some = label.any(dim=1)
    values = {}
    for ties in ("high_index", "low_index", "pessimistic"):
        metric = LabelRankingAveragePrecision(ties)
        metric.update(predicted.double(), label)
        values[ties] = float(metric.compute())
    theirs = label_ranking_average_precision_score(label[some].numpy(), predicted[some].double().numpy())
    assert values["pessimistic"] == pytest.approx(theirs)
    assert len({round(value, 6) for value in values.values()}) == 3
    exact = float((predicted == label).all(dim=1).double().mean())
    assert all(exact < value < 1 for value in values.values())


def test_without_ties_all_rules_agree():
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(20, 5, dtype=torch.float64, generator=generator)
    label = torch.randint(0, 2, (20, 5), generator=generator)
    high, low, worst = (average_precision(scores, label, t) for t in ("high_index", "low_index", "pessimistic"))
    torch.testing.assert_close(high, low, equal_nan=True)
    torch.testing.assert_close(high, worst, equal_nan=True)


def test_the_five_scores_are_scikit_learns_in_one_batch_or_many_beside_those_of_a_constant(rows):
    predicted, label = rows
    constant = torch.tensor([1, 0, 0, 1, 0, 0, 0])
    scores = LabelSetScores(7, "pessimistic")
    for part in torch.arange(60).split(11):
        scores.update(predicted[part], predicted[part].double(), constant, label[part])
    values = {name: float(value) for name, value in scores.compute().items()}
    some = label.any(dim=1).numpy()
    for prefix, said in (("", predicted.numpy()), ("floor_", constant.expand(60, 7).numpy())):
        y = label.numpy()
        assert values[f"{prefix}exact_match"] == pytest.approx(accuracy_score(y, said), abs=1e-6)
        assert values[f"{prefix}hamming_loss"] == pytest.approx(hamming_loss(y, said), abs=1e-6)
        for average in ("micro", "macro"):  # of a label that is nowhere: 0
            theirs = f1_score(y, said, average=average, zero_division=0)
            assert values[f"{prefix}{average}_f1"] == pytest.approx(theirs, abs=1e-6)
        theirs = label_ranking_average_precision_score(y[some], said[some])
        assert values[f"{prefix}average_precision"] == pytest.approx(theirs, abs=1e-6)


def test_example_f1_counts_an_empty_answer_to_an_empty_row_as_right(rows):
    predicted, label = rows
    each = []
    for p, y in zip(predicted.tolist(), label.tolist(), strict=True):
        both = sum(a and b for a, b in zip(p, y, strict=True))
        each.append(1.0 if sum(p) + sum(y) == 0 else 2 * both / (sum(p) + sum(y)))
    metric = ExampleF1()
    metric.update(predicted[:20], label[:20])
    metric.update(predicted[20:], label[20:])
    assert each[0] == 1 and each[1] == 0
    assert float(metric.compute()) == pytest.approx(np.mean(each))


def test_hard_auc_is_scikit_learns_over_the_labels_with_rows_of_both_kinds(rows):
    predicted, label = rows
    metric = HardAUC(7)
    metric.update(predicted[:20], label[:20])
    metric.update(predicted[20:], label[20:])
    theirs = [roc_auc_score(label[:, j].numpy(), predicted[:, j].numpy()) for j in range(6)]
    assert float(metric.compute()) == pytest.approx(np.mean(theirs))
