"""Each operation against torchvision's, image by image."""

import pytest
import torch
from sklearn.datasets import load_sample_image
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

from varcon_plugin.training.batch_augment import BatchAugment
from varcon_plugin.training.rand_augment import OPERATIONS, solarize

NAMES = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness",
    "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast",
    "Equalize",
)  # fmt: skip
PHOTOS = [
    load_sample_image(name)[:200:4, :240:4] for name in ("china.jpg", "flower.jpg")
]
IMAGES = torch.stack([torch.from_numpy(p.copy()).permute(2, 0, 1) for p in PHOTOS])


def test_the_operations_are_torchvisions():
    assert len(OPERATIONS) == len(NAMES)
    space = RandAugment()._augmentation_space(31, (50, 60))
    assert set(space) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("magnitude", [0, 10, 30])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_operation_is_torchvisions(name, magnitude, sign):
    values, signed = RandAugment()._augmentation_space(31, IMAGES.shape[2:])[name]
    value = float(values[magnitude]) if values.ndim else 0.0
    value *= sign if signed else 1
    expected = torch.stack(
        [
            _apply_op(image, name, value, InterpolationMode.BILINEAR, [0, 0, 0])
            for image in IMAGES
        ]
    ).float()
    operation = OPERATIONS[NAMES.index(name)]
    found = operation(IMAGES.float(), torch.full((2,), sign * magnitude / 30))
    difference = (found - expected).abs()
    # torchvision rounds to 8 bits, and mixes in more black at the edges
    assert difference.median() <= 1.5
    assert (difference > 2).float().mean() < 0.03


def test_each_image_has_its_own_level():
    levels = torch.tensor([0.2, -0.9])
    for operation in OPERATIONS:
        both = operation(IMAGES.float(), levels)
        for image, level, found in zip(IMAGES, levels, both, strict=True):
            alone = operation(image[None].float(), level[None])[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-2)


def test_solarize_inverts_what_is_bright():
    pixels = torch.tensor([10.0, 128.0, 250.0]).view(1, 3, 1, 1)
    found = solarize(pixels, torch.tensor([128.0])).flatten()
    assert found.tolist() == [10, 127, 5]


PLAIN = {
    "flip_prob": 0, "jitter_prob": 0, "grayscale_prob": 0, "blur_prob": 0,
    "mean": None, "std": None,
}  # fmt: skip


def test_a_batch_draws_operations_for_each_image():
    images = IMAGES[:1].repeat(600, 1, 1, 1)
    (found,) = BatchAugment(**PLAIN, rand_augment=(1, 15))([images])
    assert len({tuple(row) for row in found[:, :, 20, 30].tolist()}) > 12
    untouched = (found == images).flatten(1).all(dim=1).float().mean()
    assert 0.03 < untouched < 0.15  # 1 of 14
    (plain,) = BatchAugment(**PLAIN)([images])
    assert torch.equal(plain, images.float())


def test_solarized_share():
    images = IMAGES[:1].repeat(400, 1, 1, 1)
    (found,) = BatchAugment(**PLAIN, solarize_prob=0.2)([images])
    changed = (found != images).flatten(1).any(dim=1).float().mean()
    assert 0.12 < changed < 0.28


def test_the_first_view_is_drawn_as_without_a_policy():
    images, still = IMAGES[:1].repeat(50, 1, 1, 1), {"solarize_prob": 1e-9}
    plain, with_policy = BatchAugment(), BatchAugment(**still)
    for augment in (plain, with_policy):
        augment.restart(1, 2, 3)
    assert torch.equal(plain([images])[0], with_policy([images])[0])


@pytest.mark.parametrize("value", [(0, 9), (2, 31), (2, -1)])
def test_mistakes_are_told(value):
    with pytest.raises(ValueError, match="rand_augment must be"):
        BatchAugment(rand_augment=value)
