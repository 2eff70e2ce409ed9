import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from varcon_plugin.evaluation.few_shot import few_shot, shuffled_classes


@pytest.fixture
def split():
    """60 training images of each of 5 classes, and 100 test images; overlapping."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5, 10, generator=generator)
    labels = torch.cat([torch.arange(5).repeat(60), torch.randint(5, (100,))])
    features = means[labels] + torch.randn(400, 10, generator=generator)
    return features[:300], labels[:300], features[300:], labels[300:]


def chosen_images(labels, shots, draw):
    """The draw as a reader of the docs would make it, class by class."""
    generator = torch.Generator().manual_seed(draw)
    order = torch.randperm(len(labels), generator=generator).tolist()
    return [
        index
        for label in range(5)
        for index in [i for i in order if labels[i] == label][:shots]
    ]


@pytest.mark.parametrize("shots", [1, 7])
def test_equals_an_independent_implementation(split, shots):
    train, train_labels, test, test_labels = (x.numpy() for x in split)
    train, test = normalize(train), normalize(test)
    nearest, regression = [], []
    for draw in range(5):
        chosen = chosen_images(train_labels, shots, draw)
        x, y = train[chosen], train_labels[chosen]
        means = normalize([x[y == label].mean(axis=0) for label in range(5)])
        nearest.append(100 * ((test @ means.T).argmax(1) == test_labels).mean())
        fitted = LogisticRegression(C=1.0, tol=1e-6).fit(x, y)
        regression.append(100 * fitted.score(test, test_labels))
    found = {r.classifier: r for r in few_shot(*split, shots=[shots])}
    assert found["nearest-mean"].draws == pytest.approx(nearest)
    assert found["logistic"].draws == pytest.approx(regression)


def test_mean_and_95_percent_interval(split):
    for result in few_shot(*split, shots=[2], draws=6):
        low, high = stats.t.interval(
            0.95,
            df=5,
            loc=torch.tensor(result.draws).mean(),
            scale=stats.sem(result.draws),
        )
        assert result.mean - result.interval == pytest.approx(low, abs=1e-4)
        assert result.mean + result.interval == pytest.approx(high, abs=1e-4)


def test_draws_depend_on_the_seed_alone(split):
    again = few_shot(*split, shots=[1], seed=3)
    assert few_shot(*split, shots=[1], seed=3) == again
    assert few_shot(*split, shots=[1], seed=4) != again
    other_encoder = (split[0] * 2, split[1], split[2] * 2, split[3])
    assert few_shot(*other_encoder, shots=[1], seed=3) == again


def test_every_class_gets_its_shots():
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0])
    classes = shuffled_classes(labels, seed=0, draw=0)
    assert [sorted(c.tolist()) for c in classes] == [[1, 4, 8], [2, 3, 7], [0, 5, 6]]


def test_classes_need_not_be_numbered_from_zero(split):
    train, train_labels, test, test_labels = split
    renamed = few_shot(train, 10 * train_labels + 3, test, 10 * test_labels + 3)
    assert renamed == few_shot(*split)


def test_says_what_is_wrong(split):
    with pytest.raises(
        ValueError, match=r"in \[1, 60\].*class 0 has 60 training images"
    ):
        few_shot(*split, shots=[1, 61])
    with pytest.raises(ValueError, match="draws must be >= 2"):
        few_shot(*split, draws=1)
