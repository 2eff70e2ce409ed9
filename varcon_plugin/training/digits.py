"""scikit-learn's bundled handwritten digits: real images without a download."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["load_digits_split"]


def load_digits_split(
    split: Literal["train", "test"],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """1,347 images to train on and 450 to test, the same for everyone (ours).

    A quarter of the 1,797 images of scikit-learn's copy of the UCI handwritten digits
    (https://doi.org/10.24432/C50P49) is held out, stratified by class, with seed 0.
    Writers are not told apart, so a writer may occur in both splits.

    Returns:
        Images (N, 8, 8), grey, uint8 in [0, 255], and labels (N,) in [0, 10).

    Raises:
        ValueError: ``split`` is neither "train" nor "test".
        ImportError: scikit-learn is not installed.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(
        images, digits.target, test_size=0.25, stratify=digits.target, random_state=0
    )
    train_images, test_images, train_labels, test_labels = parts
    if split == "train":
        return train_images, train_labels.astype(np.int64)
    return test_images, test_labels.astype(np.int64)
