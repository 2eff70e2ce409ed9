import numpy as np
import pytest
import torch
from PIL import Image

from varcon_plugin.evaluation.corruption import (
    ALEXNET_ERRORS,
    COMMON,
    EXTRA,
    Corruption,
    ReleasedTransform,
    mean_corruption_error,
    read_released,
)


@pytest.fixture(scope="module")
def pixels():
    coarse = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((40, 36), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", COMMON + EXTRA)
def test_corrupts_the_same_way_whatever_happened_before(name, pixels):
    before = pixels.copy()
    corrupted = Corruption(name, 3)(pixels, 17)
    assert corrupted.shape == pixels.shape
    assert corrupted.dtype == np.uint8
    assert np.array_equal(pixels, before)
    assert not np.array_equal(corrupted, pixels)
    np.random.random()  # noqa: NPY002  the state the library draws from
    assert np.array_equal(Corruption(name, 3)(pixels, 17), corrupted)


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "glass_blur", "impulse_noise", "fog"]
)
def test_every_image_and_seed_has_its_own_randomness(name, pixels):
    corrupted = Corruption(name, 3)(pixels, 0)
    assert not np.array_equal(Corruption(name, 3)(pixels, 1), corrupted)
    assert not np.array_equal(Corruption(name, 3, seed=1)(pixels, 0), corrupted)


def test_leaves_the_random_state_alone(pixels):
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    Corruption("snow", 5)(pixels, 0)
    assert np.array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_severities_are_those_of_imagenet_c():
    grey = np.full((64, 64, 3), 128, dtype=np.uint8)
    for severity, std in enumerate((0.08, 0.12, 0.18), 1):  # before clipping matters
        noisy = Corruption("gaussian_noise", severity)(grey, 0)
        assert noisy.std() / 255 == pytest.approx(std, rel=0.03)
    ramp = np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 64, 3))
    for severity, factor in enumerate((0.4, 0.3, 0.2, 0.1, 0.05), 1):
        flat = Corruption("contrast", severity)(ramp, 0).astype(float)
        assert np.ptp(flat) == pytest.approx(63 * factor, abs=1)


def test_a_small_image_that_no_drop_hits_stays_as_it_is():
    """The library divides 0 by 0 there: a black image, and a warning."""
    grey = np.full((32, 32, 3), 100, dtype=np.uint8)
    assert np.array_equal(Corruption("spatter", 1)(grey, 17), grey)
    assert not np.array_equal(Corruption("spatter", 1)(grey, 18), grey)


def test_images_below_32_pixels_are_corrupted_enlarged():
    tiny = np.full((8, 8, 3), 100, dtype=np.uint8)
    bright = Corruption("brightness", 1)(tiny, 0)
    assert bright.shape == (8, 8, 3)
    assert bright.mean() == pytest.approx(100 + 0.1 * 255, abs=1)


def test_alexnet_has_an_mce_of_100():
    found = mean_corruption_error({name: [e] * 5 for name, e in ALEXNET_ERRORS.items()})
    assert found.mce == pytest.approx(100)
    assert found.ce == pytest.approx(dict.fromkeys(COMMON, 100))


def test_mce_known_value_without_the_extra_corruptions():
    errors = {name: [0.1, 0.2, 0.3, 0.4, 0.5] for name in (*COMMON, *EXTRA)}
    expected = 100 * 0.3 * np.mean([1 / error for error in ALEXNET_ERRORS.values()])
    assert mean_corruption_error(errors).mce == pytest.approx(expected)
    errors["spatter"] = [1.0] * 5
    assert mean_corruption_error(errors).mce == pytest.approx(expected)


def test_mce_needs_every_corruption_and_severity():
    errors = {name: [0.1] * 5 for name in COMMON}
    with pytest.raises(ValueError, match="errors of fog at 5 severities, got 4"):
        mean_corruption_error(errors | {"fog": [0.1] * 4})
    del errors["snow"]
    with pytest.raises(ValueError, match="errors of snow at 5 severities, got 0"):
        mean_corruption_error(errors)


@pytest.mark.parametrize("layout", ["snow/2", "weather/snow/2"])
def test_reads_the_released_folders(layout, tmp_path):
    for wnid in ("n03", "n01", "n02"):
        (tmp_path / layout / wnid).mkdir(parents=True)
        Image.new("RGB", (224, 224)).save(tmp_path / layout / wnid / "a.JPEG")
    by_wnid = read_released(tmp_path, "snow", 2, ("n00", "n01", "n02", "n03"))
    assert by_wnid.labels.tolist() == [1, 2, 3]
    by_position = read_released(tmp_path, "snow", 2, ("tench", "goldfish", "shark"))
    assert by_position.labels.tolist() == [0, 1, 2]
    assert by_position.items[2].parts[-2:] == ("n03", "a.JPEG")
    with pytest.raises(ValueError, match="has 3 classes, the training split 2"):
        read_released(tmp_path, "snow", 2, ("tench", "goldfish"))
    with pytest.raises(ValueError, match="no released images of snow at severity 3"):
        read_released(tmp_path, "snow", 3, ("tench", "goldfish", "shark"))


def test_released_images_are_not_resized(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    tensor = ReleasedTransform()(tmp_path / "a.png")
    assert torch.equal(tensor, torch.from_numpy(image).permute(2, 0, 1))
    padded = np.pad(image, ((5, 5), (9, 9), (0, 0)))
    assert torch.equal(ReleasedTransform()(padded), tensor)
