import numpy as np
import pytest

from varcon_plugin.training.digits import load_digits_split


def test_splits_are_disjoint_stratified_and_fixed():
    train, train_labels = load_digits_split("train")
    test, test_labels = load_digits_split("test")
    assert train.shape == (1347, 8, 8)
    assert test.shape == (450, 8, 8)
    assert train.dtype == np.uint8
    assert train.max() == 255
    shares = np.bincount(test_labels) / np.bincount(train_labels)
    assert np.abs(shares - 1 / 3).max() < 0.02
    again, _ = load_digits_split("test")
    assert np.array_equal(test, again)
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)


def test_an_unknown_split_is_an_error():
    with pytest.raises(ValueError, match='"train" or "test", got \'val\''):
        load_digits_split("val")
