from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage
from sklearn.cluster import AgglomerativeClustering
from torch.nn import functional as F

from varcon_plugin.evaluation.clustering import agreement, class_linkage, cluster, ward


@pytest.fixture
def samples():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (120,), generator=generator)
    means = torch.randn(4, 6, generator=generator)
    return means[labels] + 0.8 * torch.randn(120, 6, generator=generator), labels


def test_linkage_is_scipys_of_the_normalised_features(samples):
    unit = F.normalize(samples[0].double(), dim=1).numpy()
    np.testing.assert_allclose(ward(samples[0]), linkage(unit, "ward"), atol=1e-7)


def test_clusters_are_scikit_learns(samples):
    features, labels = samples
    unit = F.normalize(features.double(), dim=1).numpy()
    theirs = AgglomerativeClustering(n_clusters=4, linkage="ward").fit_predict(unit)
    assert cluster(features, labels) == agreement(labels.numpy(), theirs)


def test_accuracy_is_that_of_the_best_matching():
    random = np.random.default_rng(0)
    labels, clusters = random.integers(0, 5, 60), random.integers(0, 5, 60)
    best = max((np.array(p)[clusters] == labels).mean() for p in permutations(range(5)))
    assert agreement(labels, clusters).accuracy == pytest.approx(100 * best)


def test_known_values():
    found = agreement([0, 0, 0, 1, 1, 1], [5, 5, 7, 7, 7, 7])
    assert found.accuracy == pytest.approx(100 * 5 / 6)
    assert found.purity == pytest.approx(100 * 5 / 6)
    # MI / mean entropy, by hand
    p = np.array([[2, 1], [0, 3]]) / 6
    rows, columns = p.sum(1), p.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mutual = np.nansum(p * np.log(p / np.outer(rows, columns)))
    entropy = [-(m * np.log(m)).sum() for m in (rows, columns)]
    assert found.nmi == pytest.approx(100 * mutual / np.mean(entropy))
    # pairs together in both 4, in labels 6, in clusters 7, of 15
    assert found.ari == pytest.approx(
        100 * (4 - 6 * 7 / 15) / ((6 + 7) / 2 - 6 * 7 / 15)
    )


def test_separated_classes_score_100():
    labels = torch.arange(3).repeat_interleave(5)
    noise = torch.randn(15, 3, generator=torch.Generator().manual_seed(0))
    found = cluster(torch.eye(3)[labels] + 0.01 * noise, labels)
    assert found[:4] == pytest.approx((100, 100, 100, 100))
    assert (found.clusters, found.samples) == (3, 15)


def test_a_part_of_many_samples(samples):
    features, labels = samples
    found = cluster(features, labels, max_samples=50)
    assert found.samples == 50
    assert found == cluster(features, labels, max_samples=50)


def test_one_class_cannot_be_clustered():
    with pytest.raises(ValueError, match="at least two classes, got 1"):
        cluster(torch.randn(5, 3), torch.ones(5).long())


def test_dendrogram_is_of_the_class_means():
    labels = torch.tensor([7, 7, 2, 4, 4, 4])
    features = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(features.double(), dim=1)
    means = torch.stack([unit[labels == label].mean(dim=0) for label in (2, 4, 7)])
    tree, classes = class_linkage(features, labels)
    assert classes == [2, 4, 7]
    np.testing.assert_allclose(tree, ward(means), atol=1e-12)
