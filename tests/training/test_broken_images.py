"""Kinds of broken images x doors: replaced and named, refused, or read rightly."""

from __future__ import annotations

import io
import os
import random
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS
from PIL import Image

import varcon_plugin.mmpretrain  # noqa: F401  registers everything
from varcon_plugin.evaluation.images import ImageDataset
from varcon_plugin.evaluation.sources import ImageTransform, folder
from varcon_plugin.lightly.data import create_datasets
from varcon_plugin.training.crops import TwoCrops
from varcon_plugin.training.damaged import ReplaceCorrupt
from varcon_plugin.training.decoding import load_image
from varcon_plugin.training.image_folder import ImageFolder

GOOD = 200  # the grey of every whole image
STEPS = {
    "TwoCrops": [{"type": "TwoCrops", "scale": 16}, {"type": "PackInputs"}],
    "LoadImage": [
        {"type": "LoadImage"},
        {"type": "Resize", "scale": 16},
        {"type": "PackInputs"},
    ],
}


def torch_door(root):
    """Grey of every training image, as a loop in plain torch gets it."""
    data = ImageFolder(str(root / "train"), loader=str, transform=TwoCrops(16))
    data = ReplaceCorrupt(data)
    return [torch.stack(data[i][0]).float().mean() for i in range(len(data))]


def lightly_door(root):
    data = create_datasets(str(root), image_size=16)
    for index in range(len(data.train)):
        data.train[index]
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    images = [data.bank[index][0] for index in range(len(data.bank))]
    return [255 * (image.mean((1, 2)) * std + mean).mean() for image in images]


def mmpretrain_door(root, steps):
    init_default_scope("mmpretrain")
    config = {"type": "ImageFolder", "data_root": str(root), "pipeline": STEPS[steps]}
    data = DATASETS.build({**config, "serialize_data": False})  # quicker
    return [data[index]["inputs"].float().mean() for index in range(len(data))]


def evaluation(root):
    images = folder(root).train
    data = ImageDataset(
        images.items, ImageTransform(lambda image: torch.tensor(np.array(image)))
    )
    return [data[index].float().mean() for index in range(len(data))]


DOORS = {
    "torch": torch_door,
    "lightly": lightly_door,
    "mmpretrain, TwoCrops": lambda root: mmpretrain_door(root, "TwoCrops"),
    "mmpretrain, LoadImage": lambda root: mmpretrain_door(root, "LoadImage"),
    "evaluation": evaluation,
}


def encoded(pixels, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
JPEG, PNG = encoded(NOISE), encoded(NOISE, "PNG")
HALF = len(JPEG) // 2


def with_size(jpeg, height, width):
    """A JPEG that claims another size."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def png_of_size(width, height):
    """A PNG of one colour, a thousandth of the memory that it takes."""

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes((width + 1) * height), 1)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


DAMAGED = {
    "ends early": JPEG[:HALF],
    "ends early, with an end marker": JPEG[:HALF] + b"\xff\xd9",
    "4 KiB of zeros": JPEG[:HALF] + bytes(4096) + JPEG[HALF + 4096 :],
    "4 KiB of another file": JPEG[:HALF] + PNG[1000:5096] + JPEG[HALF + 4096 :],
    "empty": b"",
    "a page": b"<html>404 Not Found</html>",
    "claims 60,000 x 60,000": with_size(JPEG, 60000, 60000),
    "a bomb": png_of_size(12000, 12000),
    "PNG that ends early": PNG[: len(PNG) // 2],
    "PNG, one bit flipped": PNG[:5000] + bytes([PNG[5000] ^ 8]) + PNG[5001:],
    "float TIFF": encoded(np.full((40, 40), 0.5, np.float32), "TIFF"),
    "16-bit TIFF": encoded(np.full((40, 40), 3000, np.uint16), "TIFF"),
}


@pytest.fixture
def images(tmp_path):
    """Four grey images of two classes in train and test."""
    whole = encoded(np.full((40, 50, 3), GOOD, np.uint8), "PNG")
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            path = tmp_path / split / name
            path.mkdir(parents=True)
            for index in range(2):
                (path / f"{index}.png").write_bytes(whole)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  mmengine draws from the global one
    return tmp_path


def check_replaced(images, path, door, logged):
    """The other images are delivered, and the log (or the error) names ``path``."""
    if door == "evaluation":
        with pytest.raises(ValueError, match=re.escape(f"image {path} cannot be used")):
            DOORS[door](images)
        return
    grey = DOORS[door](images)
    assert len(grey) == 5
    assert all(abs(value - GOOD) < 1 for value in grey)
    assert f"{path} cannot be used" in logged()


@pytest.fixture
def logged(caplog, capfd):
    """Everything that was logged or printed."""
    return lambda: caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_replaced_and_named(kind, door, images, logged):
    path = images / "train" / "cat" / "damaged.jpg"
    path.write_bytes(DAMAGED[kind])
    check_replaced(images, path, door, logged)


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_cannot_be_read_is_replaced_and_named(door, images, logged):
    path = images / "train" / "cat" / "unreadable.jpg"
    path.symlink_to("/proc/self/mem")  # a regular file, an input/output error
    check_replaced(images, path, door, logged)


@pytest.mark.parametrize("door", DOORS)
def test_a_file_that_may_not_be_read_is_replaced_and_named(
    door, images, logged, monkeypatch
):
    path = images / "train" / "cat" / "secret.jpg"
    path.write_bytes(JPEG)
    read = Path.read_bytes

    def refuse(self):  # to root, nothing is forbidden
        if self.name == "secret.jpg":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    check_replaced(images, path, door, logged)


def pipe(cat):
    os.mkfifo(cat / "pipe.jpg")
    return "pipe.jpg is not a regular file"


def loop(cat):
    (cat / "again").symlink_to(cat.parent)
    return "leads back to a folder that it lies in"


def link_to_nothing(cat):
    (cat / "gone.jpg").symlink_to("nowhere.jpg")
    return "gone.jpg is a link to nothing"


def empty_class(cat):
    (cat.parent / "emu").mkdir()
    return "no images in class folder .*emu"


def class_without_images(cat):
    (cat.parent / "emu").mkdir()
    (cat.parent / "emu" / "notes.txt").touch()
    return "no images in class folder .*emu"


def class_that_is_no_text(cat):
    os.mkdir(os.fsencode(cat.parent) + b"/caf\xe9")  # noqa: PTH102  bytes
    return r"class folder caf\\xe9 .* not UTF-8"


def link_to_itself(cat):
    (cat / "self").symlink_to(cat / "self")
    return "cannot read the folder .*self: Too many levels"


def no_classes(cat):
    for path in cat.parent.glob("*/*"):
        path.rename(cat.parents[1] / path.name)
    cat.rmdir()
    (cat.parent / "dog").rmdir()
    return "no class folders in .*train"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "spoil",
    [
        pipe,
        loop,
        link_to_nothing,
        empty_class,
        class_without_images,
        class_that_is_no_text,
        link_to_itself,
        no_classes,
    ],
)
def test_a_spoilt_folder_is_refused_before_training(spoil, door, images):
    message = spoil(images / "train" / "cat")
    with pytest.raises(ValueError, match=message):
        DOORS[door](images)


def sixteen_bits(cat):
    pixels = np.full((40, 40), GOOD * 256 + 77, np.uint16)
    (cat / "deep.png").write_bytes(encoded(pixels, "PNG"))


def name_that_is_no_text(cat):
    data = (cat / "0.png").read_bytes()
    with open(os.fsencode(cat) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123  bytes
        file.write(data)


def hidden_files(cat):
    (cat / "._0.jpg").write_bytes(b"macOS leaves these")
    (cat.parent / ".cache").mkdir()
    (cat / "2.PNG").write_bytes((cat / "0.png").read_bytes())


def transparent(cat):
    Image.new("RGBA", (40, 40), (GOOD, GOOD, GOOD, 9)).save(cat / "glass.png")


def inks(cat):
    pixels = Image.new("CMYK", (40, 40), (0, 0, 0, 255 - GOOD))
    pixels.save(cat / "inks.jpg", quality=95)


def folder_like_an_image(cat):
    (cat / "more.jpg").mkdir()
    (cat / "more.jpg" / "2.png").write_bytes((cat / "0.png").read_bytes())


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "add",
    [
        sixteen_bits,
        name_that_is_no_text,
        hidden_files,
        transparent,
        inks,
        folder_like_an_image,
    ],
)
def test_unusual_images_are_read_rightly(add, door, images):
    add(images / "train" / "cat")
    grey = DOORS[door](images)
    assert len(grey) == 5
    assert all(abs(value - GOOD) < 1.5 for value in grey)


def test_a_pipe_that_comes_later_does_not_block(images, logged):
    data = ImageFolder(str(images / "train"), loader=str, transform=TwoCrops(16))
    path = images / "train" / "cat" / "0.png"
    path.unlink()
    os.mkfifo(path)
    assert ReplaceCorrupt(data)[0]
    assert f"{path} cannot be used: it is not a regular file" in logged()


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_exif_orientation(tag, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = tag
    coarse = Image.fromarray(NOISE[:6, :8]).resize((80, 60), Image.Resampling.BICUBIC)
    path = tmp_path / "turned.jpg"
    coarse.save(path, quality=95, exif=exif)
    from PIL import ImageOps

    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(load_image(path)), expected)
