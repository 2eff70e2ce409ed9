import pytest
import torch
from sklearn.linear_model import LogisticRegression

from varcon_plugin.evaluation.linear import (
    linear_probe,
    select_and_fit,
    stratified_mask,
)
from varcon_plugin.evaluation.logistic import fit_logistic


@pytest.fixture
def split():
    """400 training and 100 test features of 6 classes, far from centred or scaled."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(6, 12, generator=generator)
    labels = torch.randint(6, (500,), generator=generator)
    features = means[labels] + torch.randn(500, 12, generator=generator)
    features = 30 * features + 500
    return features[:400], labels[:400], features[400:], labels[400:]


@pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
def test_equals_scikit_learn(split, c):
    train, labels, test, _ = split
    train, test = ((x.double() - 500) / 30 for x in (train, test))
    reference = LogisticRegression(C=c, tol=1e-9, solver="newton-cholesky")
    reference.fit(train, labels)
    ours = fit_logistic(train, labels, C=c, tol=1e-9)
    expected = torch.from_numpy(reference.predict_proba(test))
    torch.testing.assert_close(
        ours.scores(test).softmax(dim=1), expected, rtol=0, atol=1e-4
    )


def test_float32_finds_the_same_classes(split):
    train, labels, test, _ = split
    train, test = ((x - 500) / 30 for x in (train, test))
    single = fit_logistic(train, labels).scores(test).softmax(dim=1)
    double = fit_logistic(train.double(), labels).scores(test).softmax(dim=1)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-3)


def test_chunks_do_not_matter(split):
    train, labels, test, _ = split
    train, test = ((x.double() - 500) / 30 for x in (train, test))
    whole = fit_logistic(train, labels, tol=1e-7).scores(test)
    chunked = fit_logistic(train, labels, tol=1e-7, chunk_size=33).scores(test)
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-4)


def test_shift_and_scale_of_the_features_do_not_matter(split):
    train, train_labels, test, test_labels = split
    a = linear_probe(train.double(), train_labels, test.double(), test_labels)
    b = linear_probe(
        train.double() / 30 - 7, train_labels, test.double() / 30 - 7, test_labels
    )
    assert a.C == b.C
    assert torch.equal(a.ranked[:, 0], b.ranked[:, 0])
    assert a.top1 > 70


def test_the_test_set_decides_nothing(split):
    train, train_labels, test, test_labels = split
    honest = linear_probe(train, train_labels, test, test_labels)
    shuffled = linear_probe(train, train_labels, test, test_labels.roll(1))
    assert shuffled.C == honest.C
    assert shuffled.validation_top1 == honest.validation_top1
    assert torch.equal(shuffled.ranked, honest.ranked)


def test_chooses_the_best_c_on_the_held_out_part_the_smaller_of_equals(split):
    result = linear_probe(*split, cs=(1e-6, 1e-2, 1.0))
    best = max(result.validation_top1.values())
    assert min(c for c, v in result.validation_top1.items() if v == best) == result.C


def test_held_out_images_do_not_teach(split):
    train, labels, _, _ = split
    held_out = stratified_mask(labels, 0.2, seed=0)
    other = train.clone()
    other[held_out.nonzero()[0]] *= 100

    def validation_scores(features):
        seen = []
        metric = lambda scores, _: seen.append(scores) or 0.0  # noqa: E731
        select_and_fit(features, labels, metric=metric, held_out=held_out, cs=[0.1])
        return seen[0]

    assert torch.equal(validation_scores(other)[1:], validation_scores(train)[1:])


def test_seed_fixes_the_held_out_part():
    labels = torch.arange(5).repeat_interleave(40)
    mask = stratified_mask(labels, 0.2, seed=3)
    assert torch.equal(mask, stratified_mask(labels, 0.2, seed=3))
    assert not torch.equal(mask, stratified_mask(labels, 0.2, seed=4))
    assert labels[mask].bincount().tolist() == [8] * 5


def test_a_class_of_one_image_is_not_held_out():
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2])
    assert labels[stratified_mask(labels, 0.2, seed=0)].tolist() == [1, 2]
    with pytest.raises(ValueError, match="no class of the train split has two images"):
        stratified_mask(torch.arange(4), 0.2, seed=0)


def test_separable_classes_are_separated():
    features = torch.eye(4).repeat(10, 1) + 0.01 * torch.randn(40, 4)
    labels = torch.arange(4).repeat(10)
    result = linear_probe(features, labels, features, labels)
    assert (result.top1, result.top5) == (100, 100)
    assert result.ranked.shape == (40, 4)


def test_says_what_is_wrong(split):
    train, train_labels, test, test_labels = split
    with pytest.raises(ValueError, match="5 of 400 train features hold NaN"):
        linear_probe(
            train.index_fill(0, torch.arange(5), torch.nan),
            train_labels,
            test,
            test_labels,
        )
    with pytest.raises(ValueError, match="same dimension, got 12 and 11"):
        linear_probe(train, train_labels, test[:, 1:], test_labels)
    with pytest.raises(ValueError, match="C must be > 0, got 0"):
        fit_logistic(train, train_labels, C=0)
