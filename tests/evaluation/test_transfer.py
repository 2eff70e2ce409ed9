import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from varcon_plugin.evaluation.logistic import fit_logistic
from varcon_plugin.evaluation.transfer import customary_metric, transfer


@pytest.fixture
def splits():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 8, generator=generator)

    def split(size):
        labels = torch.randint(4, (size,), generator=generator)
        noise = torch.randn(size, 8, generator=generator)
        return means[labels] + noise, labels

    return split(120), split(60), split(40)


def test_regularisation_is_chosen_on_the_validation_split(splits):
    train, test, validation = splits
    grid = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 100.0)

    def best(fitted_on, judged_on):
        features, labels = fitted_on
        mean, scale = features.mean(dim=0), features.var(dim=0, correction=0).mean()
        scores = {}
        for c in grid:
            reference = LogisticRegression(C=c, tol=1e-6, max_iter=5000)
            reference.fit((features - mean) / scale.sqrt(), labels)
            unseen = (judged_on[0] - mean) / scale.sqrt()
            scores[c] = reference.score(unseen, judged_on[1])
        return max(scores, key=scores.get)

    assert best(train, validation) != best(validation, train)
    assert best(train, validation) == transfer(train, test, validation, cs=grid).C


def test_fits_on_training_and_validation_images(splits):
    train, test, validation = splits
    found = transfer(train, test, validation, cs=[0.1])
    features = torch.cat([train[0], validation[0]]).double()
    labels = torch.cat([train[1], validation[1]])
    scale = features.var(dim=0, correction=0).mean().sqrt()
    reference = LogisticRegression(C=0.1, tol=1e-6)
    reference.fit((features - features.mean(dim=0)) / scale, labels)
    expected = reference.score((test[0] - features.mean(dim=0)) / scale, test[1])
    assert found.value == pytest.approx(100 * expected)


def test_several_labels_an_image_are_regressions_of_their_own(splits):
    (features, labels), _, _ = splits
    hot = torch.stack([labels == 1, labels < 2, labels != 3], dim=1).long()
    ours = fit_logistic(features.double(), hot, C=0.5, tol=1e-8)
    for column in range(3):
        reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000)
        reference.fit(features.double(), hot[:, column])
        np.testing.assert_allclose(ours.weight[column], reference.coef_[0], atol=1e-4)
        np.testing.assert_allclose(
            ours.bias[column], reference.intercept_[0], atol=1e-4
        )


def test_map_of_several_labels(splits):
    train, test, _ = splits
    hot = [
        (x, torch.stack([y == c for c in range(4)], dim=1).long()) for x, y in splits
    ]
    found = transfer(hot[0], hot[1], metric="map11", cs=[0.1])
    assert 60 < found.value < 100
    with pytest.raises(ValueError, match="'map11' does not fit train labels"):
        transfer(train, test, metric="map11")


@pytest.mark.parametrize(
    ("name", "metric"),
    [("Oxford-IIIT-Pets", "mean_per_class"), ("flowers102", "mean_per_class"),
     ("food-101", "top1"), ("CIFAR10", "top1"), ("FGVCAircraft", "mean_per_class")],
)  # fmt: skip
def test_customary_metric(name, metric):
    assert customary_metric(name, torch.zeros(3).long()) == metric
    assert customary_metric(name, torch.zeros(3, 4).long()) == "map11"


def test_classes_that_training_lacks_are_an_error(splits):
    train, (features, labels), _ = splits
    with pytest.raises(ValueError, match="1 classes that the train split lacks"):
        transfer(train, (features, labels.where(labels != 2, 8)))
