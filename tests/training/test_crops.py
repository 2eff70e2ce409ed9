"""`TwoCrops`: decoding, the distribution of the boxes, the resize."""

import io
import random

import numpy as np
import pytest
import torch
from mmpretrain.datasets.transforms import RandomResizedCrop as MMRandomResizedCrop
from PIL import Image
from scipy import stats
from sklearn.datasets import load_sample_image
from torchvision.transforms import RandomResizedCrop

from varcon_plugin.training.crops import TwoCrops, crop_box, resized_crop
from varcon_plugin.training.damaged import CorruptImageError
from varcon_plugin.training.decoding import decode

PHOTO = load_sample_image("china.jpg")[:300, :400]


def encoded(image=None, kind="JPEG", **options):
    buffer = io.BytesIO()
    (image or Image.fromarray(PHOTO)).save(buffer, kind, **options)
    return buffer.getvalue()


def hwc(image):
    return image.permute(1, 2, 0).numpy()


def test_jpeg_is_decoded_as_pillow_does():
    data = encoded(quality=95)
    theirs = np.asarray(Image.open(io.BytesIO(data)))
    difference = np.abs(hwc(decode(data)).astype(int) - theirs)
    assert difference.max() <= 2  # versions of libjpeg differ in rounding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_other_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(kind=kind, **options)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(hwc(decode(data)), theirs)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_other_colour_modes_become_rgb(mode):
    kind = "JPEG" if mode in ("L", "CMYK") else "PNG"
    data = encoded(Image.fromarray(PHOTO).convert(mode), kind)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(hwc(decode(data)).astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bgr_is_rgb_reversed(kind):
    data = encoded(kind=kind)
    assert torch.equal(decode(data, "BGR"), decode(data).flip(0))
    crops = []
    for order in ("RGB", "BGR"):
        random.seed(0)
        crops.append(torch.stack(TwoCrops(16, order=order)(data)))
    assert torch.equal(crops[0], crops[1].flip(-1))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    upright = decode(encoded(quality=95, exif=exif))
    assert upright.shape == (3, 400, 300)
    turned = np.rot90(PHOTO, k=-1)
    assert np.abs(hwc(upright).astype(int) - turned).mean() < 3


def damaged():
    data = encoded()
    yield "half", data[: len(data) // 2]
    yield "no end marker", data[:-2]
    yield "header only", data[:100]
    yield "empty", b""
    yield "zeros", bytes(1000)
    yield "text", b"<html>404 Not Found</html>"
    noise = np.random.default_rng(0).integers(0, 256, 2000, dtype=np.uint8).tobytes()
    half = len(data) // 2
    yield "noise inside", data[:half] + noise + data[half + 2000 :]


@pytest.mark.parametrize(("name", "data"), list(damaged()))
def test_damaged_files_are_errors(name, data):
    with pytest.raises(CorruptImageError):
        decode(data)


def test_the_error_names_the_file(tmp_path):
    path = tmp_path / "broken.jpg"
    path.write_bytes(encoded()[:500])
    with pytest.raises(CorruptImageError, match=r"broken\.jpg cannot be used"):
        TwoCrops(32)(path)


@pytest.mark.parametrize("shape", [(300, 400), (400, 120), (64, 64)])
def test_boxes_are_distributed_as_torchvisions_and_mmpretrains(shape):
    random.seed(0)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  mmpretrain draws from the global one
    height, width = shape
    image = torch.empty(3, height, width)
    mm = MMRandomResizedCrop(scale=8)
    scale, ratio = (0.08, 1.0), (3 / 4, 4 / 3)
    ours = np.array([crop_box(height, width) for _ in range(6000)])
    torchvisions = np.array(
        [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(3000)]
    )
    mmpretrains = np.array(
        [mm.rand_crop_params(np.empty((height, width, 3))) for _ in range(3000)]
    )
    for name, value in {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
    }.items():
        for theirs in (torchvisions, mmpretrains):
            pvalue = stats.ks_2samp(value(ours), value(theirs)).pvalue
            assert pvalue > 1e-4, name


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (1, 1), (3, 4)])
def test_boxes_of_extreme_images(shape):
    random.seed(0)
    for _ in range(50):
        top, left, height, width = crop_box(*shape, (0.9, 1.0))
        assert 0 <= top <= top + height <= shape[0]
        assert 0 <= left <= left + width <= shape[1]
        assert min(height, width) >= 1


@pytest.mark.parametrize(
    "box", [(0, 0, 300, 400), (13, 57, 250, 211), (5, 5, 90, 70), (0, 0, 1, 1)]
)
def test_resize_equals_pillow_within_a_level(box):
    top, left, height, width = box
    image = torch.from_numpy(PHOTO.copy()).permute(2, 0, 1)
    ours = hwc(resized_crop(image, box, (112, 96)))
    crop = Image.fromarray(PHOTO[top : top + height, left : left + width])
    theirs = np.asarray(crop.resize((96, 112), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_crops_are_uint8_in_memory_order():
    crops = TwoCrops((48, 64), num_views=3)(encoded())
    assert [(crop.shape, crop.dtype) for crop in crops] == [
        ((48, 64, 3), torch.uint8)
    ] * 3
    assert all(crop.is_contiguous() for crop in crops)
    assert not torch.equal(crops[0], crops[1])


def test_paths_bytes_pillow_and_tensors_give_the_same(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(kind="PNG"))
    inputs = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        decode(path.read_bytes()),
    ]
    results = []
    for image in inputs:
        random.seed(1)
        results.append(torch.stack(TwoCrops(32)(image)))
    assert all(torch.equal(results[0], other) for other in results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be"),
        ({"scale": (0, 1)}, "scale must be"),
        ({"scale": (0.5, 1.5)}, "scale must be"),
        ({"ratio": (2, 1)}, "ratio must be"),
        ({"num_views": 0}, "num_views must be"),
        ({"order": "GBR"}, "order must be"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        TwoCrops(**arguments)


def test_small_crops_come_last_and_see_less():
    ramp = torch.arange(100, dtype=torch.uint8).repeat(3, 100, 1)
    crops = TwoCrops(
        40, scale=(0.9, 1), small_views=3, small_size=(10, 20), small_scale=(0.1, 0.1)
    )
    random.seed(0)
    views = crops(ramp)
    assert [tuple(view.shape[:2]) for view in views] == [(40, 40)] * 2 + [(10, 20)] * 3
    spread = [int(view.max()) - int(view.min()) for view in views]
    assert max(spread[2:]) < 45 < 80 < min(spread[:2])
    with pytest.raises(ValueError, match="small_views must be >= 0, got -1"):
        TwoCrops(small_views=-1)
    with pytest.raises(ValueError, match="small_size must be >= 1, got 0"):
        TwoCrops(small_size=0)
    with pytest.raises(ValueError, match="small_scale must be"):
        TwoCrops(small_scale=(0.4, 0.1))
