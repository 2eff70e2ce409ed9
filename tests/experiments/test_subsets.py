"""Parts of a folder of images."""

from collections import Counter

import pytest
import torch

from varcon_plugin.evaluation.sources import folder
from varcon_plugin.experiments.subsets import groups, hold_out, long_tail, take


@pytest.fixture
def images(tmp_path):
    """Four classes with 20 images to train and 2 to test; nobody reads the files."""
    for split, number in (("train", 20), ("test", 2)):
        for name in "abcd":
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(number):
                (place / f"{i:02}.png").touch()
    return tmp_path / "images"


def files(splits):
    """Training and test files as they are called in the source."""
    return [{item.resolve() for item in part.items} for part in splits[:2]]


def test_a_long_tail_falls_exponentially_to_a_hundredth():
    counts = long_tail([120] * 99 + [100], 100)
    assert counts[0] == 100
    assert counts[-1] == 1
    assert counts[49] == 10  # the geometric mean, half way
    assert counts == sorted(counts, reverse=True)
    with pytest.raises(ValueError, match="imbalance must be >= 1, got 0"):
        long_tail([3, 3], 0)


def test_a_part_keeps_the_test_images_and_is_the_same_again(images, tmp_path):
    few = folder(take(images, tmp_path / "few", per_class=5))
    again = folder(take(images, tmp_path / "again", per_class=5))
    assert Counter(few.train.labels.tolist()) == {0: 5, 1: 5, 2: 5, 3: 5}
    assert files(few) == files(again)
    assert files(few)[1] == files(folder(images))[1]
    tail = folder(take(images, tmp_path / "few", imbalance=10))  # in its place
    assert tail.train.labels.bincount().tolist() == [20, 9, 4, 2]
    assert len(tail.test.labels) == 8
    with pytest.raises(ValueError, match=r"images per class .* \[1, 20\], .* got 21"):
        take(images, tmp_path / "few", per_class=21)


def test_held_out_images_are_training_images_that_are_not_trained_on(images, tmp_path):
    train, held = files(folder(hold_out(images, tmp_path / "part", 0.25)))
    assert len(held) == 4 * 5
    assert not train & held
    assert train | held == files(folder(images))[0]


def test_thirds_of_the_classes_by_their_number_of_images():
    labels = torch.tensor([0] * 9 + [1] + [2] * 4 + [3] * 2 + [4] * 8 + [5] * 3)
    found = groups(labels)
    assert sorted(found["frequent"].tolist()) == [0, 4]
    assert sorted(found["rare"].tolist()) == [1, 3]
    assert groups(torch.arange(6)) == {}
