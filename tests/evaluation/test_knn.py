import math

import pytest
import torch
from lightly.utils.benchmarking import knn_predict as lightly_knn_predict
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional as F

from varcon_plugin.evaluation.knn import (
    knn_accuracy,
    knn_predict,
    merge_neighbors,
    nearest_neighbors,
)
from varcon_plugin.evaluation.metrics import topk_accuracy


@pytest.fixture
def split():
    """300 training and 80 test features of 7 overlapping classes."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(7, 16, generator=generator)
    labels = torch.randint(7, (380,), generator=generator)
    features = means[labels] + 1.2 * torch.randn(380, 16, generator=generator)
    return features[:300], labels[:300], features[300:], labels[300:]


@pytest.mark.parametrize("k", [1, 20, 200])
@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_equals_lightly(split, k, temperature):
    train, train_labels, test, _ = split
    expected = lightly_knn_predict(
        F.normalize(test, dim=1),
        F.normalize(train, dim=1).T,
        train_labels,
        num_classes=7,
        knn_k=k,
        knn_t=temperature,
    )
    ranked = knn_predict(train, train_labels, test, k=k, temperature=temperature)
    assert torch.equal(ranked[:, 0], expected[:, 0])
    voted = min(5, 2) if k == 1 else 5  # with one neighbour all others are tied
    if voted == 5:
        assert torch.equal(ranked, expected[:, :5])


def test_equals_scikit_learn(split):
    train, train_labels, test, _ = split
    reference = KNeighborsClassifier(
        n_neighbors=20,
        metric="cosine",
        weights=lambda distance: torch.from_numpy((1 - distance) / 0.07).exp().numpy(),
    ).fit(train, train_labels)
    ranked = knn_predict(train, train_labels, test, k=20, temperature=0.07)
    assert ranked[:, 0].tolist() == reference.predict(test).tolist()


@pytest.mark.parametrize("chunk_size", [1, 7, 299])
def test_chunks_do_not_matter(split, chunk_size):
    train, train_labels, test, _ = split
    whole = knn_predict(train, train_labels, test, k=20)
    chunked = knn_predict(train, train_labels, test, k=20, chunk_size=chunk_size)
    assert torch.equal(chunked, whole)


def test_never_holds_more_similarities_than_a_chunk(split, monkeypatch):
    train, train_labels, test, _ = split
    seen = []
    matmul = torch.Tensor.__matmul__

    def record(a, b):
        product = matmul(a, b)
        seen.append(product.numel())
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", record)
    knn_predict(train, train_labels, test, k=20, chunk_size=32)
    assert seen
    assert max(seen) == 32 * 32


def test_shards_of_the_bank_merge_to_the_whole(split):
    train, train_labels, test, _ = split
    whole = nearest_neighbors(train, train_labels, test, 50)
    parts = [
        nearest_neighbors(train[part], train_labels[part], test, 50)
        for part in (slice(0, 10), slice(10, 230), slice(230, None))
    ]
    merged = merge_neighbors(parts, 50)
    torch.testing.assert_close(merged.similarity, whole.similarity)
    assert torch.equal(merged.label, whole.label)


def test_length_of_the_features_does_not_matter(split):
    train, train_labels, test, _ = split
    lengths = torch.linspace(0.1, 9, len(train))[:, None]
    assert torch.equal(
        knn_predict(train * lengths, train_labels, 3 * test),
        knn_predict(train, train_labels, test),
    )


def test_tiny_temperature_is_the_nearest_neighbour(split):
    train, train_labels, test, _ = split
    ranked = knn_predict(train, train_labels, test, k=200, temperature=1e-5)
    nearest = nearest_neighbors(train, train_labels, test, 1)
    assert torch.equal(ranked[:, 0], nearest.label[:, 0])


def test_fewer_than_five_classes():
    train = torch.eye(3)
    ranked = knn_predict(train, torch.tensor([2, 0, 1]), train, k=3)
    assert ranked.shape == (3, 3)
    assert ranked[:, 0].tolist() == [2, 0, 1]


def test_accuracy_of_every_k_and_temperature(split):
    train, train_labels, test, test_labels = split
    table = knn_accuracy(*split, ks=(1, 10, 20), temperatures=(0.07, 0.1))
    assert set(table) == {(k, t) for k in (1, 10, 20) for t in (0.07, 0.1)}
    for (k, temperature), accuracy in table.items():
        ranked = knn_predict(train, train_labels, test, k=k, temperature=temperature)
        assert accuracy == topk_accuracy(ranked, test_labels)


def test_topk_accuracy_known_value():
    ranked = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [5, 6, 7, 8, 9]])
    top = topk_accuracy(ranked, torch.tensor([0, 4, 0]))
    assert math.isclose(top.top1, 100 / 3)
    assert math.isclose(top.top5, 200 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"k": 301},
            r"k must be in \[1, 300\], the number of .*, got 301",
        ),
        ({"k": 0}, r"k must be in \[1, 300\]"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        (
            {"train_features": torch.full((300, 16), math.nan)},
            "300 of 300 train",
        ),
        ({"test_features": torch.empty(0, 16)}, "the test split is empty"),
        ({"train_labels": torch.zeros(3).long()}, r"train_labels \(N,\), got shapes"),
    ],
)
def test_says_what_is_wrong(split, change, message):
    train, train_labels, test, _ = split
    arguments = {
        "train_features": train,
        "train_labels": train_labels,
        "test_features": test,
    }
    with pytest.raises(ValueError, match=message):
        knn_predict(**(arguments | change))


def test_classes_that_training_lacks_are_an_error(split):
    train, train_labels, test, test_labels = split
    with pytest.raises(ValueError, match=r"1 classes that the train split.*\[9\]"):
        knn_accuracy(train, train_labels, test, test_labels.where(test_labels != 3, 9))
