"""Each operation equals Pillow's (both hosts use it) and torchvision's."""

import mmcv
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_sample_image
from torchvision.transforms import functional as F

from varcon_plugin.training import color

FACTORS = (0.2, 0.7, 1.3, 1.8)
NAMES = ("brightness", "contrast", "saturation")
# Grey levels of 255. Pillow truncates to 8 bits after each operation, rounds the mean
# luma of contrast, and keeps hue and saturation in 8 bits; torchvision on floats does
# none of that but has luma weights of 4 digits.
PILLOW = 1.25
TORCHVISION = 0.03
PILLOW_HUE = 15  # on noise, mean below 1.6; hue 0 alone moves Pillow by up to 6


@pytest.fixture(scope="module", params=["china.jpg", "flower.jpg", "noise"])
def photo(request):
    if request.param == "noise":
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return load_sample_image(request.param)[100:324, 200:424].copy()


def batch(photo):
    return torch.from_numpy(photo).permute(2, 0, 1)[None].float()


def levels(ours, theirs):
    ours = ours[0].permute(1, 2, 0).numpy()
    return np.abs(ours - np.asarray(theirs, dtype=np.float64))


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", NAMES)
def test_jitter_equals_pillow_mmcv_and_torchvision(photo, name, factor):
    ours = getattr(color, f"adjust_{name}")(batch(photo), torch.tensor([factor]))
    enhance = dict(zip(NAMES, ("Brightness", "Contrast", "Color"), strict=True))[name]
    pillow = getattr(ImageEnhance, enhance)(Image.fromarray(photo)).enhance(factor)
    assert levels(ours, pillow).max() < PILLOW
    theirs = getattr(F, f"adjust_{name}")(batch(photo) / 255, factor)
    assert (ours - 255 * theirs).abs().max() < TORCHVISION
    mm = getattr(mmcv, f"adjust_{name}" if name != "saturation" else "adjust_color")
    bgr = np.ascontiguousarray(photo[..., ::-1])
    if name == "saturation":
        with pytest.warns(UserWarning, match="alpha"):
            bgr = mm(bgr, factor, backend="pillow")
    else:
        bgr = mm(bgr, factor, backend="pillow")
    assert levels(ours, bgr[..., ::-1]).max() < PILLOW


@pytest.mark.parametrize("factor", [-0.5, -0.2, -0.07, 0.0, 0.1, 0.2, 0.5])
def test_hue_equals_torchvision_and_pillow_to_its_8_bits(photo, factor):
    ours = color.adjust_hue(batch(photo), torch.tensor([factor]))
    theirs = F.adjust_hue(batch(photo) / 255, factor)
    assert (ours - 255 * theirs).abs().max() < 1e-2
    pillow = levels(ours, F.adjust_hue(Image.fromarray(photo), factor))
    assert pillow.max() < PILLOW_HUE
    assert pillow.mean() < 1.6


def test_hue_of_grey_pixels_does_not_change():
    grey = torch.arange(256.0).repeat(1, 3, 4, 1)
    assert torch.equal(color.adjust_hue(grey, torch.tensor([0.3])), grey)


def test_grayscale_equals_pillow(photo):
    ours = color.grayscale(batch(photo)).repeat(1, 3, 1, 1)
    theirs = np.asarray(Image.fromarray(photo).convert("L"))[..., None]
    assert levels(ours, theirs).max() < 0.51


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 1.5, 2.0, 3.7])
def test_blur_equals_pillow(photo, sigma):
    ours = color.gaussian_blur(batch(photo), torch.tensor([sigma]))
    blurred = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma))
    # Pillow rounds to 8 bits after each of its six passes.
    assert levels(ours, blurred).max() < 3


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_blur_is_as_near_torchvisions_as_pillows_is(photo, sigma):
    # torchvision samples the Gaussian itself and mirrors the border.
    inside = (slice(12, -12), slice(12, -12))
    gaussian = F.gaussian_blur(batch(photo), [23, 23], [sigma, sigma])
    exact = gaussian[0].permute(1, 2, 0).numpy()[inside]
    ours = levels(color.gaussian_blur(batch(photo), torch.tensor([sigma])), 0)[inside]
    pillow = np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(sigma)))
    rounding = 1.0  # Pillow's result of a tiny sigma is the image itself
    error = np.abs(pillow[inside].astype(np.float64) - exact).mean()
    assert np.abs(ours - exact).mean() < error + rounding


def test_every_image_has_its_own_factor():
    images = torch.rand(5, 3, 9, 11) * 255
    factors = torch.tensor([0.2, 0.5, 1.0, 1.4, 1.8])
    sigmas = torch.tensor([0.1, 0.5, 1.0, 2.0, 3.0])
    hues = torch.tensor([-0.4, -0.1, 0.0, 0.2, 0.5])
    for name, values in [
        ("adjust_brightness", factors),
        ("adjust_contrast", factors),
        ("adjust_saturation", factors),
        ("adjust_hue", hues),
        ("gaussian_blur", sigmas),
    ]:
        function = getattr(color, name)
        together = function(images, values)
        alone = [function(images[i : i + 1], values[i : i + 1]) for i in range(5)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-4)
