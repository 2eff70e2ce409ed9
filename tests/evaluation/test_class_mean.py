"""Nearest class mean by cosine."""

import pytest
import torch
import torch.nn.functional as F

from varcon_plugin.evaluation.class_mean import class_mean_predict


def test_it_is_the_nearest_mean_of_normalised_rows():
    torch.manual_seed(0)
    train, test = torch.randn(60, 5), torch.randn(20, 5)
    labels, truth = torch.arange(60) % 4, torch.arange(20) % 4
    ranked = class_mean_predict(train, labels, test, truth)
    unit = F.normalize(train)
    for row, found in zip(test, ranked, strict=True):
        means = [unit[labels == c].mean(dim=0) for c in range(4)]
        cosines = torch.stack([F.cosine_similarity(row, m, dim=0) for m in means])
        assert found.tolist() == cosines.argsort(descending=True).tolist()
    longer = class_mean_predict(train * torch.rand(60, 1) * 9, labels, test, truth)
    assert torch.equal(ranked, longer)


def test_a_class_without_training_images_comes_last():
    train, labels = -torch.eye(3)[[0, 2]], torch.tensor([0, 2])
    test = torch.tensor([[1.0, 0.1, 0.5]])
    ranked = class_mean_predict(train, labels, test, torch.tensor([2]))
    assert ranked.tolist() == [[2, 0, 1]]  # cosines below 0, the absent one last


def test_mistakes_are_told():
    rows, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="test"):
        class_mean_predict(rows, labels, rows, labels + 1)
