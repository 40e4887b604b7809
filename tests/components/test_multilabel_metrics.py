"""Multi-label scores against loops from their definitions and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from components.metrics.multilabel import FirstLabelTop1, MultilabelScores


def drawn(images: int = 60, classes: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (
        torch.rand(images, classes, generator=generator) < torch.tensor([0.6, 0.3, 0.2, 0.1, 0.05][:classes])
    ).float()
    probabilities = (0.4 * labels + 0.6 * torch.rand(images, classes, generator=generator)).clamp(0, 1)
    return probabilities, labels


def scores_of(probabilities: torch.Tensor, labels: torch.Tensor, batch: int = 7) -> dict[str, float]:
    metric = MultilabelScores(labels.shape[1])
    for start in range(0, len(labels), batch):
        metric.update(probabilities[start : start + batch], labels[start : start + batch])
    return {name: float(value) for name, value in metric.compute().items()}


def test_first_label_top1_is_what_keras_compares():
    """arg-max of the prediction against arg-max of the multi-hot label, one picture at a time."""
    probabilities, labels = drawn()
    metric = FirstLabelTop1()
    metric.update(probabilities[:20], labels[:20])
    metric.update(probabilities[20:], labels[20:])
    right = sum(np.argmax(p) == np.argmax(t) for p, t in zip(probabilities.numpy(), labels.numpy(), strict=True))
    assert float(metric.compute()) == pytest.approx(100 * right / len(labels))
    assert scores_of(probabilities, labels)["first_label_top1"] == pytest.approx(100 * right / len(labels))


def test_first_label_top1_calls_a_true_second_class_wrong():
    metric = FirstLabelTop1()
    metric.update(
        torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.1, 0.9], [0.9, 0.1, 0.1]]),
        torch.tensor([[1, 1, 0], [0, 0, 1], [0, 0, 0]]),
    )
    assert float(metric.compute()) == pytest.approx(200 / 3)  # the first is named right, but not by its first class


def test_mean_average_precision_is_that_of_scikit_learn():
    probabilities, labels = drawn()
    each = [average_precision_score(labels[:, c].numpy(), probabilities[:, c].numpy()) for c in range(5)]
    scores = scores_of(probabilities, labels)
    assert scores["mean_ap"] == pytest.approx(100 * np.mean(each), abs=1e-3)
    assert scores["absent_classes"] == 0


def test_a_class_that_no_picture_shows_does_not_count_in_the_mean_and_is_counted():
    probabilities, labels = drawn()
    labels[:, 2] = 0
    each = [average_precision_score(labels[:, c].numpy(), probabilities[:, c].numpy()) for c in (0, 1, 3, 4)]
    scores = scores_of(probabilities, labels)
    assert scores["mean_ap"] == pytest.approx(100 * np.mean(each), abs=1e-3)
    assert scores["absent_classes"] == 1
    assert scores["floor_mean_ap"] == pytest.approx(100 * float(labels[:, [0, 1, 3, 4]].mean()), abs=1e-3)


def test_subset_and_hamming_accuracy_count_decisions_at_one_half():
    probabilities, labels = drawn()
    subset = hamming = 0
    for p, t in zip(probabilities.tolist(), labels.tolist(), strict=True):
        right = [(value > 0.5) == (true == 1) for value, true in zip(p, t, strict=True)]
        subset += all(right)
        hamming += sum(right) / len(right)
    scores = scores_of(probabilities, labels)
    assert scores["subset_accuracy"] == pytest.approx(100 * subset / 60, abs=1e-3)
    assert scores["hamming_accuracy"] == pytest.approx(100 * hamming / 60, abs=1e-3)


def test_floors_are_what_the_best_constant_answers_score():
    _, labels = drawn()
    rows = [tuple(row) for row in labels.int().tolist()]
    scores = scores_of(torch.rand(60, 5), labels)
    commonest = max(set(rows), key=rows.count)
    as_prediction = torch.tensor(commonest).float().repeat(60, 1)
    assert scores["floor_subset_accuracy"] == pytest.approx(scores_of(as_prediction, labels)["subset_accuracy"])
    majority = (labels.mean(0) > 0.5).float().repeat(60, 1)
    assert scores["floor_hamming_accuracy"] == pytest.approx(scores_of(majority, labels)["hamming_accuracy"])
    firsts = [row.index(1) if 1 in row else 0 for row in rows]
    always = torch.eye(5)[max(set(firsts), key=firsts.count)].repeat(60, 1)
    assert scores["floor_first_label_top1"] == pytest.approx(scores_of(always, labels)["first_label_top1"])
    constant = scores_of(torch.full((60, 5), 0.3), labels)
    assert constant["mean_ap"] == pytest.approx(constant["floor_mean_ap"], abs=1e-3)


def test_element_wise_accuracy_flatters_an_answer_of_nothing():
    """Trap 2: with 20 classes, few of them shown, "no" to everything is right in over 90 %; its floor says so."""
    labels = (torch.rand(200, 20, generator=torch.Generator().manual_seed(1)) < 0.07).float()
    scores = scores_of(torch.zeros(200, 20), labels)
    assert scores["hamming_accuracy"] > 90
    assert scores["hamming_accuracy"] == pytest.approx(scores["floor_hamming_accuracy"], abs=1e-3)
    assert scores["mean_ap"] == pytest.approx(scores["floor_mean_ap"], abs=1e-3)
