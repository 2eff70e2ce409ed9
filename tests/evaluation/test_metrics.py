import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from varcon_plugin.evaluation.metrics import interpolated_map, mean_per_class


def eleven_points(scores, labels):
    """VOC 2007 for one class, by loops over its definition."""
    ranked = sorted(zip(scores, labels, strict=True), reverse=True)
    positives, points, found = sum(labels), [], 0
    for rank, (_, positive) in enumerate(ranked, 1):
        found += positive
        points.append((found / positives, found / rank))
    return sum(
        max((precision for recall, precision in points if recall >= level / 10 - 1e-12))
        for level in range(11)
    ) / 11  # fmt: skip


def test_interpolated_map_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 3, generator=generator)
    labels = (torch.rand(40, 3, generator=generator) < 0.25).long()
    expected = [
        eleven_points(scores[:, c].tolist(), labels[:, c].tolist()) for c in range(3)
    ]
    found = interpolated_map(scores, labels)
    assert found == pytest.approx(100 * sum(expected) / 3)


def test_interpolated_map_known_value():
    # precision 1 up to recall .5, 2/3 beyond
    scores, labels = torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1], [0], [1]])
    assert interpolated_map(scores, labels) == pytest.approx(100 * (6 + 5 * 2 / 3) / 11)


def test_classes_without_positives_do_not_count():
    scores, labels = torch.rand(6, 2), torch.tensor([[1, 0]] * 6)
    assert interpolated_map(scores, labels) == pytest.approx(100)


def test_mean_per_class_equals_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 20 + [2] * 3 + [3])  # class 1 does not occur
    ranked = torch.randint(4, (24, 2), generator=generator)
    ranked[:12, 0] = labels[:12]
    present = torch.isin(ranked[:, 0], labels.unique())
    ranked[~present, 0] = 0  # scikit-learn warns of classes that do not occur
    expected = balanced_accuracy_score(labels, ranked[:, 0])
    assert mean_per_class(ranked, labels) == pytest.approx(100 * expected)
